import math

import numpy as np
import pytest
import torch
from tests.train.commands.compared_runs import benchmark_json, said, text_of
from tests.train.planted_runs import make_run, masks_of

from s2ap_defend.errors import RecipeError
from s2ap_train.commands.compare.comparison import compare_runs
from s2ap_train.commands.compare.runs import find_runs
from s2ap_train.pruning.masks import flip_rate
from s2ap_train.statistics.paired import agresti_min
from s2ap_train.storage.checkpoint import save_checkpoint


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
