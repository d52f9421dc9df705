import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train.commands.pruning_command import arguments
from tests.train.forked_process import ended, forked

from s2ap_defend.commands.main import run
from s2ap_defend.errors import RecipeError
from s2ap_train.commands.compare.runs import find_runs
from s2ap_train.commands.prune import metrics, pipeline
from s2ap_train.measures.benchmark import Benchmark
from s2ap_train.models import build
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.storage.checkpoint import restore
from s2ap_train.storage.lock import locked
from s2ap_train.storage.run_folder import read_run

KEYS = {
    "sparsity",
    "clean_accuracy",
    "robust_accuracy",
    "mask_robust_accuracy",
    "flip_rate",
    "sharpness",
    "hessian_eigenvalue",
    "seconds_mask_search",
    "attack",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prune")


@pytest.fixture(scope="module")
def pruned(work: Path) -> Path:
    """The run folder of S2AP on HYDRA with a network too small and training too short for good figures."""
    assert run(arguments("-o", str(work / "s2ap"), "--work-dir", str(work / "shared"))) == 0
    return work / "s2ap"


def test_a_run_folder_holds_everything_and_rebuilds_the_network(pruned: Path) -> None:
    files = {"checkpoint.json", "weights.safetensors", "masks.safetensors", "scores.safetensors"}
    assert {path.name for path in pruned.iterdir()} == files | {"config.json", "metrics.json"}
    found = read_run(pruned)
    assert set(found.metrics) >= KEYS
    model = build(found.record["architecture"]).eval()
    restore(model, found.weights)
    kept = total = 0
    for name, weight in prunable_weights(model).items():
        assert torch.equal(weight != 0, found.masks[name])
        assert found.scores[name].shape == weight.shape
        kept, total = kept + int(found.masks[name].sum()), total + weight.numel()
    assert found.metrics["sparsity"] == pytest.approx(1 - kept / total)
    assert found.metrics["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert found.metrics["flip_rate"] > 0
    assert found.metrics["attack"]["samples"] == 40
    assert len(found.metrics["history"]["finetune"]) == 2, "weights were fine-tuned"
    assert set(found.metrics["transferability"]["models"]) == {"dense", "pruned", "int8"}


def test_the_metrics_are_those_of_the_network_in_the_folder(pruned: Path) -> None:
    from s2ap_train.measures.benchmark import measure_benchmark
    from s2ap_train.recipe import load_pruning_recipe

    found = read_run(pruned)
    model = build(found.record["architecture"]).eval()
    restore(model, found.weights)
    test = load_pruning_recipe("digits").load_data().test.subset(slice(0, 40))
    attack = found.metrics["attack"]
    again = measure_benchmark(
        model, test.images, test.labels, eps=0.15, seed=0, steps=attack["steps"], restarts=attack["restarts"]
    )
    assert Benchmark.from_json(found.metrics["after"]).robust_accuracy == again.robust_accuracy
    assert found.metrics["clean_accuracy"] == again.clean_accuracy


def test_the_same_command_again_trains_nothing(pruned: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (pruned / "metrics.json").read_bytes()
    assert run(arguments("-o", str(pruned), "--work-dir", str(work / "shared"))) == 0
    assert "reused, it was made with the same recipe" in capsys.readouterr().out
    assert (pruned / "metrics.json").read_bytes() == before


def test_a_measure_that_a_network_does_not_allow_is_left_out_with_a_word_and_the_others_are_there(
    tmp_path: Path, work: Path, pruned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> float:
        raise RuntimeError("derivative for aten::odd_backward is not implemented\nmore")

    monkeypatch.setattr(metrics, "largest_eigenvalue", unknown)
    assert run(arguments("-o", str(tmp_path / "odd"), "--work-dir", str(work / "shared"))) == 0
    said = capsys.readouterr().out
    assert "hessian_eigenvalue is left out, the network does not allow it: RuntimeError: derivative for" in said
    found = read_run(tmp_path / "odd").metrics
    assert (found["hessian_eigenvalue"], found["hessian_eigenvalue_relative"]) == (None, None)
    assert found["left_out"].keys() == {"hessian_eigenvalue", "hessian_eigenvalue_relative"}
    assert found["sharpness"] >= 0
    assert found["robust_accuracy"] is not None
    assert read_run(pruned).metrics["left_out"] == {}


def test_a_network_is_stored_before_it_is_measured_and_measured_by_the_same_command(
    tmp_path: Path, work: Path, pruned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> dict[str, object]:
        raise KeyboardInterrupt

    command = arguments("-o", str(tmp_path / "run"), "--work-dir", str(work / "shared"))
    monkeypatch.setattr(pipeline, "run_measures", killed)
    assert run(command) != 0
    stored = read_run(tmp_path / "run")
    assert not stored.measured
    assert all(torch.equal(tensor, stored.weights[name]) for name, tensor in read_run(pruned).weights.items())
    with pytest.raises(RecipeError, match="holds a network that is not measured yet; run prune again"):
        find_runs([tmp_path / "run"])
    monkeypatch.undo()
    assert run(command) == 0
    found = read_run(tmp_path / "run")
    assert found.measured
    assert found.metrics["robust_accuracy"] == read_run(pruned).metrics["robust_accuracy"]


def test_another_method_is_not_written_over_a_run(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (pruned / "metrics.json").read_bytes()
    assert run(arguments("-o", str(pruned), "--method", "hydra")) == 2
    assert "with other settings; choose another folder" in capsys.readouterr().err
    assert (pruned / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "structure", "base"),
    [
        (("--method", "hydra"), "unstructured", "hydra"),
        (("--method", "s2ap", "--base", "harp", "--gamma", "0.2", "--structure", "channel"), "channel", "harp"),
        (("--structure", "2:4"), "2:4", "hydra"),
        (("--method", "magnitude", "--sparsity", "0.8"), "unstructured", "magnitude"),
        (("--method", "iterative-magnitude", "--sparsity", "0.2"), "unstructured", "iterative-magnitude"),
        (("--method", "twin-rep"), "unstructured", "twin-rep"),
        (("--method", "flying-bird"), "unstructured", "flying-bird"),
        (("--method", "scratch-ticket"), "unstructured", "scratch-ticket"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_every_method_and_structure_makes_a_run(
    work: Path, pruned: Path, options: tuple[str, ...], structure: str, base: str
) -> None:
    folder = work / "-".join((*options, base)).replace(":", "")
    short = {"measures__transferability": "false", "finetune__epochs": 1, "pruning__training__epochs": 2}
    assert run(arguments("-o", str(folder), "--work-dir", str(work / "shared"), *options, **short)) == 0
    found = read_run(folder)
    assert (found.metrics["structure"], found.metrics["base"]) == (structure, base)
    assert found.metrics["method"] == ("s2ap" if base in {"hydra", "harp"} and "hydra" not in options else base)
    assert (found.metrics["flops"] < found.metrics["flops_dense"]) == (structure == "channel")
    restore(build(found.record["architecture"]), found.weights)


def test_a_killed_command_goes_on_and_ends_with_the_mask_of_an_unbroken_one(
    work: Path, pruned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 in the mask search, then the same command again."""
    folder, unfinished = work / "killed", work / "killed.work"
    shutil.copytree(work / "shared" / "dense", unfinished / "dense")
    command = arguments("-o", str(folder))
    process = forked(run, command)
    deadline = time.monotonic() + 120
    while not list(unfinished.glob("run-*/prune/snapshot-*/checkpoint.json")):
        assert time.monotonic() < deadline, "no epoch of the mask search was kept"
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert not folder.exists()
    assert run(command) == 0
    assert "dense: reused" in capsys.readouterr().out
    whole, resumed = read_run(pruned), read_run(folder)
    for tensors in ("masks", "scores", "weights"):
        first, second = getattr(whole, tensors), getattr(resumed, tensors)
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()), tensors
    assert not list(unfinished.glob("run-*")), "what was unfinished is removed"


@pytest.mark.parametrize("phase", ["finetune.lr=1e9", "pruning.training.lr=1e9"])
def test_a_collapse_in_the_first_epoch_fails_and_leaves_the_last_good_network(
    work: Path, pruned: Path, phase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = work / phase.replace("=", "-")
    long = {"adversarial__epochs": 8, "adversarial__lr": 0.3, "adversarial__eps": 0.05}
    command = [*arguments("-o", str(folder), "--work-dir", str(work / "long"), **long), "--set", phase]
    assert run(command) == 2
    assert "holds the last good network before it" in capsys.readouterr().err
    found = read_run(folder).metrics
    assert found["collapse"] is not None
    assert found["mask_clean_accuracy"] > 0.3
    if phase.startswith("finetune"):
        assert found["clean_accuracy"] == found["mask_clean_accuracy"], "what was there before fine-tuning"
    else:
        assert found["clean_accuracy"] > 0.3


def test_a_run_of_other_data_is_neither_reused_nor_written_over(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)
    command = arguments("-o", str(work / "npz"), "--method", "magnitude", "--data", str(work / "data.npz"))
    command += ["--set", "data.source=npz", "--set", "measures.transferability=false"]
    np.savez(work / "data.npz", images=images[:400], labels=labels[:400])
    assert run(command) == 0
    np.savez(work / "data.npz", images=images[400:800], labels=labels[400:800])
    assert run(command) == 2
    assert "with other data; choose another folder" in capsys.readouterr().err
    assert run([*command, "-o", str(work / "npz2"), "--work-dir", str(work / "npz.work")]) == 0
    assert "dense: reused" not in capsys.readouterr().out


def test_the_same_run_twice_at_once_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "work" / ".lock", wait=False):  # noqa: SIM117
        with pytest.raises(RecipeError, match="another process is working in"):
            with locked(tmp_path / "work" / ".lock", wait=False):
                pass
    with locked(tmp_path / "work" / ".lock", wait=False):
        pass


def test_natural_training_is_said_twice_to_be_no_defence(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = {"measures__transferability": "false", "finetune__epochs": 1, "pruning__training__epochs": 2}
    assert run(arguments("-o", str(work / "natural"), "--natural", **short)) == 0
    assert "warning: training without attacks" in capsys.readouterr().out
    config = json.loads((work / "natural" / "config.json").read_text())
    assert {config[part]["loss"] for part in ("adversarial", "finetune")} == {"natural"}
