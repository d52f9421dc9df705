"""What `compare` refuses: figures that do not compare, and what is no run."""

import pytest
import torch
from tests.train.commands.compared_runs import benchmark_json
from tests.train.planted_runs import ATTACK, make_run

from s2ap_defend.errors import RecipeError
from s2ap_train.commands.compare.comparison import compare_runs
from s2ap_train.commands.compare.measures import MEASURES
from s2ap_train.commands.compare.runs import find_runs
from s2ap_train.storage.checkpoint import save_checkpoint
from s2ap_train.storage.run_folder import read_run, write_run


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
