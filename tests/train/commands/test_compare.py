import base64
import io
import json
import math
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from rich.console import Console
from tests.train.planted_runs import ATTACK, make_run, masks_of

from s2ap_defend.errors import ModelFileError, RecipeError
from s2ap_train.commands.compare.cli import compare
from s2ap_train.commands.compare.comparison import compare_runs
from s2ap_train.commands.compare.measures import MEASURES
from s2ap_train.commands.compare.page import FILES, PAGE
from s2ap_train.commands.compare.report import print_comparison, tables
from s2ap_train.commands.compare.runs import find_runs
from s2ap_train.measures.benchmark import Benchmark, BenchmarkAttack
from s2ap_train.pruning.masks import flip_rate
from s2ap_train.statistics.paired import agresti_min
from s2ap_train.storage.checkpoint import save_checkpoint
from s2ap_train.storage.run_folder import read_run, write_run


@pytest.fixture
def six(tmp_path):
    """HYDRA and S2AP on HYDRA with seeds 0, 1, 2."""
    for method in ("hydra", "s2ap"):
        for seed in range(3):
            make_run(tmp_path / "runs" / f"{method}-{seed}", method, seed)
    return tmp_path / "runs"


def text_of(comparison, **console):
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, **console))
    return stream.getvalue()


def said(comparison):
    """The same without line breaks."""
    return " ".join(text_of(comparison).split())


def test_runs_that_differ_in_their_seed_are_averaged(six):
    comparison = compare_runs(find_runs([six]))
    assert [(group.name, group.seeds) for group in comparison.groups] == [
        ("hydra", (0, 1, 2)),
        ("s2ap (hydra)", (0, 1, 2)),
    ]
    hydra = comparison.groups[0].summary("robust_accuracy")
    assert hydra.mean == pytest.approx(0.42)
    assert hydra.std == pytest.approx(0.02)  # of 0.40, 0.44, 0.42
    assert comparison.groups[1].summary("flip_between_epochs").mean == pytest.approx(0.12)
    assert comparison.groups[1].summary("hessian_eigenvalue_relative").mean is None


def test_differences_are_paired_by_seed(six):
    """0.03, 0.01, 0.05: mean 0.03, deviation 0.02, t(0.975, 2) = 4.302653."""
    (difference,) = compare_runs(find_runs([six])).differences
    assert (difference.method.name, difference.baseline.name) == ("s2ap (hydra)", "hydra")
    found = difference.measures["robust_accuracy"]
    assert (found.count, found.mean, found.std) == pytest.approx((3, 0.03, 0.02))
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert found.interval == pytest.approx((0.03 - half, 0.03 + half), abs=1e-6)
    assert difference.measures["sharpness"].mean == pytest.approx(-0.25)
    assert "flip_rate" not in difference.measures  # HYDRA has none
    assert difference.time_ratio == pytest.approx(1.1)
    assert difference.unlike == {}


def test_only_seeds_that_both_ran_are_paired(tmp_path):
    folders = [make_run(tmp_path / f"h{seed}", "hydra", seed) for seed in (0, 1)]
    folders += [make_run(tmp_path / f"s{seed}", "s2ap", seed) for seed in (2, 1)]
    (difference,) = compare_runs(find_runs(folders)).differences
    assert difference.seeds == (1,)
    assert difference.measures["robust_accuracy"].mean == pytest.approx(0.01)
    assert difference.time_ratio == pytest.approx(1.1)
    assert "one seed: no interval" in text_of(compare_runs(find_runs(folders)))


def benchmark_json(images, right, predicted, *, seed=0):
    """The benchmark of a network on one-pixel images, whose bits are these."""
    bits = np.array(right, dtype=bool)
    attack = BenchmarkAttack(eps=0.1, seed=seed)
    found = Benchmark("pruned", attack, f"{images:064d}", np.array(predicted), bits, bits, bits, bits)
    return found.to_json()


def test_one_seed_has_an_interval_over_its_images(tmp_path):
    """Of 10 images 1 is lost and 4 are gained: difference 0.3, Agresti and Min by `agresti_min`."""
    before, after = [1] * 3 + [0] * 7, [0] + [1] * 6 + [0] * 3
    make_run(tmp_path / "h", "hydra", after=benchmark_json(0, before, [0] * 10))
    make_run(tmp_path / "s", "s2ap", after=benchmark_json(0, after, [0] * 10))
    comparison = compare_runs(find_runs([tmp_path]))
    assert comparison.differences[0].over_images[0].interval == agresti_min(1, 4, 10)
    assert "robust % of this seed over its 10 images: +30.0" in text_of(comparison)
    assert comparison.to_json()["differences"][0]["over_images"]["0"]["gained"] == 4


def test_a_damaged_benchmark_is_refused_with_the_name_of_its_run(tmp_path):
    broken = benchmark_json(0, [1] * 10, [0] * 10) | {"robust_accuracy": 0.5}
    make_run(tmp_path / "h", "hydra", after=benchmark_json(0, [1] * 10, [0] * 10))
    make_run(tmp_path / "s", "s2ap", after=broken)
    with pytest.raises(RecipeError, match=r"/s, after: the benchmark of pruned says robust accuracy 0\.5"):
        compare_runs(find_runs([tmp_path]))


def test_seeds_that_were_tested_on_the_same_images_agree_as_often_as_counted(tmp_path):
    for seed, predicted in enumerate(([0, 1, 2, 3], [0, 1, 2, 0], [0, 0, 2, 0])):
        make_run(tmp_path / str(seed), seed=seed, after=benchmark_json(7, [1] * 4, predicted, seed=seed))
    (group,) = compare_runs(find_runs([tmp_path])).groups
    assert group.agreement.values == (0.75, 0.5, 0.75)
    make_run(tmp_path / "3", seed=3, after=benchmark_json(8, [1] * 4, [0] * 4, seed=3))  # another split
    (group,) = compare_runs(find_runs([tmp_path])).groups
    assert group.agreement.values == ()


def test_without_a_common_seed_nothing_is_paired(tmp_path):
    folders = [make_run(tmp_path / "h", "hydra", 0), make_run(tmp_path / "s", "s2ap", 1)]
    comparison = compare_runs(find_runs(folders))
    assert comparison.differences[0].measures == {}
    assert "no seed in common" in text_of(comparison)


def test_a_baseline_can_be_chosen(six, tmp_path):
    make_run(six / "magnitude-1", "magnitude", 1, base="magnitude")
    comparison = compare_runs(find_runs([six]), baseline="magnitude")
    pairs = {(d.method.name, d.baseline.name): d.seeds for d in comparison.differences}
    assert pairs == {("hydra", "magnitude"): (1,), ("s2ap (hydra)", "magnitude"): (1,)}
    with pytest.raises(RecipeError, match=r"no run is of the baseline 'harp'; the runs are of hydra, magnitude, s2ap"):
        compare_runs(find_runs([six]), baseline="harp")


def test_a_method_is_compared_with_its_own_base_in_its_own_setting(tmp_path):
    for sparsity in (0.5, 0.9):
        for method, base in (("hydra", "hydra"), ("harp", "harp"), ("s2ap", "hydra"), ("s2ap", "harp")):
            folder = tmp_path / f"{method}-{base}-{sparsity}"
            make_run(folder, method, base=base, target_sparsity=sparsity, sparsity=sparsity + 0.003)
    comparison = compare_runs(find_runs([tmp_path]))
    assert len(comparison.groups) == 8
    pairs = [(d.method.setting.sparsity, d.method.name, d.baseline.name) for d in comparison.differences]
    assert sorted(pairs) == [
        (0.5, "s2ap (harp)", "harp"),
        (0.5, "s2ap (hydra)", "hydra"),
        (0.9, "s2ap (harp)", "harp"),
        (0.9, "s2ap (hydra)", "hydra"),
    ]


def test_a_baseline_on_several_bases_is_taken_on_the_same_base(tmp_path):
    for method, base in (("hydra", "hydra"), ("harp", "harp"), ("s2ap", "hydra"), ("s2ap", "harp")):
        make_run(tmp_path / f"{method}-{base}", method, base=base)
    make_run(tmp_path / "magnitude", "magnitude", base="magnitude")
    comparison = compare_runs(find_runs([tmp_path]), baseline="s2ap")
    assert sorted((d.method.name, d.baseline.name) for d in comparison.differences) == [
        ("harp", "s2ap (harp)"),
        ("hydra", "s2ap (hydra)"),
        ("magnitude", "s2ap (harp)"),
        ("magnitude", "s2ap (hydra)"),
    ]


def test_two_radii_never_share_a_mean(tmp_path):
    for number, radius in enumerate((0.02, 0.05)):
        pruning = {"method": "hydra", "sparsity": 0.8, "s2ap": {"radius": radius}}
        make_run(tmp_path / str(number), seed=number, config={"pruning": pruning})
    names = [group.name for group in compare_runs(find_runs([tmp_path])).groups]
    assert names == ["s2ap (hydra), pruning.s2ap.radius 0.02", "s2ap (hydra), pruning.s2ap.radius 0.05"]


def test_unlike_fine_tuning_is_named_beside_the_difference(tmp_path):
    make_run(tmp_path / "h", "hydra")
    make_run(tmp_path / "s", "s2ap", config={"finetune": {"epochs": 6, "weight_radius": 0.005}})
    comparison = compare_runs(find_runs([tmp_path]))
    assert comparison.differences[0].unlike == {"finetune.weight_radius": (None, 0.005)}
    assert "they also differ in finetune.weight_radius None and 0.005" in said(comparison)


def test_where_a_run_was_made_does_not_make_another_method(tmp_path):
    for seed, accelerator in enumerate(("cpu", "cuda")):
        config = {"compute": {"accelerator": accelerator}, "data": {"source": "digits", "root": f"/data/{seed}"}}
        make_run(tmp_path / str(seed), seed=seed, config=config)
    assert [group.seeds for group in compare_runs(find_runs([tmp_path])).groups] == [(0, 1)]


def test_stability_between_seeds_is_that_of_the_masks_in_the_folders(six):
    group = compare_runs(find_runs([six])).groups[0]
    flips = [flip_rate(masks_of("hydra", a), masks_of("hydra", b)) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert group.stability.mean.flip_rate == pytest.approx(np.mean(flips))
    assert group.stability.std.flip_rate == pytest.approx(np.std(flips, ddof=1))
    assert group.stability.mean.chance == pytest.approx(0.8)


def test_the_tables_say_what_was_measured(six):
    text = text_of(compare_runs(find_runs([six])))
    assert "attack: pgd, eps 0.1, restarts 3, samples 100, split test, steps 20" in text
    assert "digits, small_cnn, unstructured, 80 % pruned: accuracy" in text
    assert re.search(r"hydra +3 +79\.9\+-0\.0 +90\.0\+-0\.0 +32\.0\+-2\.0 +42\.0\+-2\.0 +10\.0\+-0\.0", text)
    assert re.search(r"robust % +3 +\+3\.0 +2\.0 +\[-2\.0, \+8\.0\]", text)
    assert re.search(r"sharpness +3 +-0\.25 +0 +\[-0\.25, -0\.25\]", text)
    assert "search time: 1.10 times the baseline's" in text
    assert "a surrogate" in text


def test_a_terminal_gets_tables_and_a_pipe_whole_lines(six):
    comparison = compare_runs(find_runs([six]))
    wide = text_of(comparison, force_terminal=True, width=140)
    narrow = text_of(comparison, force_terminal=True, width=40)
    piped = text_of(comparison, width=20)
    assert "─" in wide or "━" in wide
    assert "─" not in piped
    for text in (wide, narrow, piped):
        assert "…" not in text
        assert "32.0+-2.0" in text


def test_a_collapsed_run_is_said_to_be_one(six):
    make_run(six / "s2ap-3", "s2ap", 3, collapse="one class is 71 % of the predictions")
    comparison = compare_runs(find_runs([six]))
    assert comparison.groups[1].collapsed == 1
    assert "s2ap (hydra): 1 of 4 runs collapsed" in text_of(comparison)


def test_a_run_named_twice_counts_once_and_a_copied_run_is_refused(six, tmp_path):
    assert len(find_runs([six, six / "s2ap-0", six / ".." / "runs"])) == 6
    make_run(tmp_path / "copy", "s2ap", 0)
    with pytest.raises(RecipeError, match="are the same run with seed 0; give one of them"):
        compare_runs(find_runs([six, tmp_path / "copy"]))


def test_unfinished_work_and_hidden_folders_are_not_runs(six):
    save_checkpoint(six / "s2ap-0.work" / "dense", tensors={"w": torch.zeros(1)}, record={})
    make_run(six / ".trash" / "old", "s2ap", 0)
    assert len(find_runs([six])) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack": {**ATTACK, "eps": 0.2}}, r"attacked differently \(eps 0\.1 and 0\.2\)"),
        ({"attack": {**ATTACK, "steps": 5, "samples": 10}}, r"\(samples 100 and 10, steps 20 and 5\)"),
        ({"data": "cifar10"}, "is of data digits, .* of cifar10"),
        ({"after": {"images_sha256": "f" * 64}}, "measured on different test images"),
    ],
)
def test_figures_that_do_not_compare_are_refused(tmp_path, change, message):
    make_run(tmp_path / "a", "hydra")
    make_run(tmp_path / "b", "s2ap", **change)
    with pytest.raises(RecipeError, match=message):
        compare_runs(find_runs([tmp_path]))


def damage(folder, name, content):
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nothing", "is not there; give folders that `s2ap-defend prune` wrote"),
        (lambda path: damage(path, "note.txt", b"x") / "note.txt", "is a file"),
        (lambda path: path, "holds no run"),
        (lambda path: damage(make_run(path / "run"), "metrics.json", b"{}"), "has SHA-256"),
        (lambda path: damage(make_run(path / "run"), "masks.safetensors", b"0" * 99), "has SHA-256"),
        (lambda path: damage(make_run(path / "run"), "checkpoint.json", b"not json"), "is not JSON"),
        (lambda path: make_run(path / "run", attack=None), r"metrics\.json lacks attack; the run was not finished"),
        (lambda path: make_run(path / "run", attack="pgd"), "describes no attack"),
    ],
)
def test_what_is_no_run_is_refused_with_one_message(tmp_path, make, message):
    with pytest.raises(RecipeError, match=message):
        find_runs([make(tmp_path)])


def test_a_checkpoint_that_is_no_run_is_refused_when_it_is_named(tmp_path):
    save_checkpoint(tmp_path / "dense", tensors={"w": torch.zeros(1)}, record={})
    with pytest.raises(RecipeError, match="is a checkpoint but not a run"):
        find_runs([tmp_path / "dense"])


def test_the_command_writes_pictures_a_page_and_json(six, tmp_path):
    result = CliRunner().invoke(
        compare, [str(six), "-o", str(tmp_path / "out"), "--json", str(tmp_path / "figures.json")]
    )
    assert result.exception is None
    assert str(tmp_path / "out" / PAGE) in result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(FILES)  # and nothing half-written
    figures = json.loads((tmp_path / "figures.json").read_bytes())
    assert figures["differences"][0]["measures"]["robust_accuracy"]["mean"] == pytest.approx(0.03)
    assert figures["groups"][1]["stability_between_seeds"]["mean"]["chance"] == pytest.approx(0.8)
    for name in FILES[:3]:
        picture = np.asarray(Image.open(tmp_path / "out" / name).convert("RGB"))
        assert picture.shape[1] > 600
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20  # bars and text, not a blank sheet


def test_the_page_needs_nothing_else_and_holds_the_pictures(six, tmp_path):
    assert CliRunner().invoke(compare, [str(six), "-o", str(tmp_path)]).exception is None
    page = (tmp_path / PAGE).read_text()
    outside = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", outside)
    inside = [base64.b64decode(found) for found in re.findall(r"base64,([A-Za-z0-9+/=]+)", page)]
    assert inside == [(tmp_path / name).read_bytes() for name in FILES[:3]]
    assert "32.0+-2.0" in outside


def test_names_are_text_on_the_page_in_the_tables_and_in_the_pictures(tmp_path):
    name = '<img src=x onerror="alert(1)">[bold]$x_{$'
    make_run(tmp_path / "run", name, base=name)
    assert CliRunner().invoke(compare, [str(tmp_path / "run"), "-o", str(tmp_path / "out")]).exception is None
    page = (tmp_path / "out" / PAGE).read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;[bold]$x_{$" in page
    assert name in text_of(compare_runs(find_runs([tmp_path / "run"])), force_terminal=True, width=200)


def test_the_same_runs_give_the_same_files(six, tmp_path):
    for name in ("first", "second"):
        assert CliRunner().invoke(compare, [str(six), "-o", str(tmp_path / name)]).exception is None
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_place_that_cannot_be_written_is_refused_before_any_work(six, tmp_path):
    (tmp_path / "taken").write_text("x")
    result = CliRunner().invoke(compare, [str(tmp_path / "no runs here"), "-o", str(tmp_path / "taken")])
    assert isinstance(result.exception, ModelFileError)
    assert "taken" in str(result.exception)


def test_drawing_does_not_touch_the_global_state_of_matplotlib(six, tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    assert CliRunner().invoke(compare, [str(six), "-o", str(tmp_path / "out")]).exception is None
    assert dict(mpl.rcParams) == before


def test_methods_without_scores_leave_gaps_and_not_zeros(tmp_path):
    missing = dict.fromkeys(("sharpness", "hessian_eigenvalue", "flip_rate", "seconds_mask_search"))
    make_run(tmp_path / "run", "magnitude", base="magnitude", **missing, stability={})
    comparison = compare_runs(find_runs([tmp_path]))
    accuracy, sharpness = tables(comparison)
    assert accuracy.rows[0][-1] == "-"
    assert set(sharpness.rows[0][1:]) == {"-"}
    assert comparison.to_json()["groups"][0]["measures"]["sharpness"] == {"mean": None, "std": None, "values": []}
    assert CliRunner().invoke(compare, [str(tmp_path / "run"), "-o", str(tmp_path / "out")]).exception is None


def make_wrong_run(folder, **metrics):
    """A run whose metrics were changed, and its hashes with them."""
    run = read_run(make_run(folder))
    parts = {name: getattr(run, name) for name in ("weights", "masks", "scores", "config", "record")}
    write_run(folder, **parts, metrics={**run.metrics, **metrics})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "a"}, r"seed is 'a', expected a whole number"),
        ({"seed": 0.5}, r"seed is 0\.5, expected a whole number"),
        ({"seed": True}, r"seed is True, expected a whole number"),
        ({"method": ["hydra"]}, r"method is \['hydra'\], expected text"),
        ({"base": {}}, r"base is \{\}, expected text"),
        ({"data": 3}, r"data is 3, expected text or a table"),
        ({"target_sparsity": "0.8"}, r"target_sparsity is '0\.8', expected a finite number"),
        ({"seconds_mask_search": -1.0}, r"seconds_mask_search is -1\.0, expected a finite number from 0"),
        ({"sharpness": 10**400}, r"sharpness is 1000*\.\.\., expected a finite number"),
        ({"stability": [0.1]}, r"stability is \[0\.1\], expected a table"),
        ({"stability": {"flip_between_epochs": 0.1}}, r"stability, flip_between_epochs is 0\.1, expected a list of"),
        ({"stability": {"flip_between_epochs": ["x"]}}, r"stability, flip_between_epochs is \['x'\], expected a list"),
        ({"after": "x"}, r"after is 'x', expected a table"),
        ({"after": {"images_sha256": ["f"]}}, r"after, images_sha256 is \['f'\], expected text"),
        ({"after": {"predicted": "0123"}}, r"after, predicted is '0123', expected a list of whole numbers"),
        ({"after": {"predicted": [0, 2**63]}}, r"after, predicted is .*, expected a list of whole numbers"),
        ({"after": {"correct": "ff"}}, r"after, correct is 'ff', expected a table"),
    ],
)
def test_metrics_of_another_type_are_refused_with_the_file_and_the_key(tmp_path, change, message):
    make_wrong_run(tmp_path / "run", **change)
    with pytest.raises(RecipeError, match=rf"/run/metrics\.json: {message}"):
        find_runs([tmp_path])


@pytest.mark.parametrize("measure", [each.key for each in MEASURES if each.key != "flip_between_epochs"])
def test_every_figure_that_is_compared_must_be_a_number(tmp_path, measure):
    make_wrong_run(tmp_path / "run", **{measure: "x"})
    with pytest.raises(RecipeError, match=rf"/run/metrics\.json: {measure} is 'x', expected a finite number"):
        find_runs([tmp_path])


def test_runs_of_the_same_images_with_other_numbers_of_predictions_are_refused(tmp_path):
    for seed, predicted in enumerate(([0, 1, 2, 3], [0, 1, 2])):
        after = {"images_sha256": "f" * 64, "predicted": predicted}
        make_run(tmp_path / str(seed), seed=seed, after=after)
    with pytest.raises(RecipeError, match="on the same images but hold 4 and 3 predictions"):
        compare_runs(find_runs([tmp_path]))


def test_a_benchmark_with_a_number_beyond_all_floats_is_refused(tmp_path):
    whole = benchmark_json(0, [1] * 10, [0] * 10)
    make_run(tmp_path / "h", "hydra", after=whole | {"attack": {**whole["attack"], "eps": 10**400}})
    make_run(tmp_path / "s", "s2ap", after=whole)
    with pytest.raises(RecipeError, match="/h, after: int too large"):
        compare_runs(find_runs([tmp_path]))


def test_unlike_searches_of_two_methods_are_named_beside_the_difference(tmp_path):
    """HARP with 5 epochs against HYDRA with 2; what only one of them has is the method itself."""
    own = {
        "hydra": {"method": "hydra", "recalibrate": True, "training": {"epochs": 2, "lr": 0.1}},
        "harp": {"method": "harp", "recalibrate": False, "training": {"epochs": 5, "lr": 0.1}, "target": "flops"},
        "magnitude": {"method": "magnitude", "minimum_kept": 1},
    }
    starts = {"hydra": {"score_start": "scaled_magnitude"}, "harp": {"score_start": "snip"}, "magnitude": {}}
    for method, settings in own.items():
        make_run(tmp_path / method, method, base=method, config={"pruning": {**settings, **starts[method]}})
    comparison = compare_runs(find_runs([tmp_path]), baseline="hydra")
    unlike = {difference.method.name: difference.unlike for difference in comparison.differences}
    assert unlike == {
        "harp": {
            "pruning.recalibrate": (True, False),
            "pruning.score_start": ("scaled_magnitude", "snip"),
            "pruning.training.epochs": (2, 5),
        },
        "magnitude": {},
    }
    assert "pruning.training.epochs 2 and 5: the difference may come from there" in said(comparison)
