import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
from click.testing import CliRunner, Result

from s2ap_train.measures.stability import pairwise
from s2ap_train.storage.run_folder import RunFolder, read_run
from s2ap_train.training import Run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {
    "model.widths": "[4, 8, 8]",
    "adversarial.epochs": 4,
    "pruning.training.epochs": 2,
    "finetune.epochs": 1,
    "measures.samples": 40,
    "measures.sharpness_samples": 20,
    "measures.curvature_iterations": 3,
    "measures.steps": 3,
}


def arguments(work: Path, *more: str, **changes: object) -> list[str]:
    settings = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["--work-dir", str(work), "--sparsities", "0.7", "--seeds", "2", "--searches", "2", *more, *sets]


def start(work: Path, *more: str, **changes: object) -> Result:
    from s2ap import main

    options = ("--workers", "1", "--rounds", "0", "--bases", "hydra")
    return CliRunner().invoke(main, arguments(work, *options, *more, **changes))


@pytest.fixture(scope="module")
def measured(benchmarks: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    work = tmp_path_factory.mktemp("benchmark")
    options = ("--rounds", "2", "--attack-steps", "2", "--json", str(work / "figures.json"))
    result = start(work, *options)
    assert result.exit_code == 0, result.output
    return work, result


def runs(work: Path) -> dict[str, RunFolder]:
    folders = sorted(path for path in (work / "runs").iterdir() if path.is_dir())
    return {folder.name.rsplit("-", 1)[0]: read_run(folder) for folder in folders}


def test_both_arms_differ_in_s2ap_alone(measured: tuple[Path, Result]) -> None:
    found = runs(measured[0])
    assert set(found) == {f"hydra{arm}-0.7-seed{seed}" for arm in ("", "-s2ap") for seed in (0, 1)}
    for seed in (0, 1):
        plain, s2ap = found[f"hydra-0.7-seed{seed}"], found[f"hydra-s2ap-0.7-seed{seed}"]
        own, others = dict(s2ap.config["pruning"]), dict(plain.config["pruning"])
        assert own.pop("s2ap") is not None
        assert others.pop("s2ap") is None
        assert own == others
        assert s2ap.config["finetune"] == plain.config["finetune"]
        assert plain.config["finetune"]["weight_radius"] > 0
        assert s2ap.metrics["before"] == plain.metrics["before"], "the dense network is shared"
        assert s2ap.metrics["attack"] == plain.metrics["attack"]
        assert s2ap.metrics["after"]["images_sha256"] == plain.metrics["after"]["images_sha256"]
        assert s2ap.metrics["flip_rate"] > 0
    assert found["hydra-0.7-seed0"].metrics["before"] != found["hydra-0.7-seed1"].metrics["before"]


def test_figures_are_those_of_the_run_folders_and_differences_are_paired(measured: tuple[Path, Result]) -> None:
    work, result = measured
    found, document = runs(work), json.loads((work / "figures.json").read_text())
    (case,) = document["results"]
    for arm, name in (("plain", "hydra"), ("s2ap", "hydra-s2ap")):
        own = [found[f"{name}-0.7-seed{seed}"].metrics for seed in (0, 1)]
        for key in ("robust_accuracy", "mask_robust_accuracy", "sharpness", "hessian_eigenvalue"):
            assert case[arm][key] == [metrics[key] for metrics in own], key
        epochs = [fmean(metrics["stability"]["flip_between_epochs"]) for metrics in own]
        assert case[arm]["flip_between_epochs"] == pytest.approx(epochs)
    gained = [b - a for a, b in zip(case["plain"]["sharpness"], case["s2ap"]["sharpness"], strict=True)]
    assert case["difference"]["sharpness"]["mean"] == pytest.approx(fmean(gained))
    assert "radius" not in case["difference"], "the plain method has no radius to compare"
    mean = 100 * fmean(case["plain"]["mask_clean_accuracy"])
    (row,) = (line for line in result.output.splitlines() if "mask, clean accuracy" in line)
    assert float(re.findall(r"\d+\.\d", row)[0]) == pytest.approx(mean, abs=0.0501)
    assert document["machine"]["processor"]
    assert "seed" not in document["recipe"]
    (timing,) = document["overhead"]
    assert timing["least"] <= timing["ratio"] <= timing["largest"]
    assert (timing["attack_steps"], timing["rounds"]) == (2, 2)


def test_searches_again_start_from_the_same_dense_network_with_another_seed(measured: tuple[Path, Result]) -> None:
    from s2ap_runs import Arm, Job, dense_network

    from s2ap_train.pruning import prune

    work, _ = measured
    overrides = tuple(f"{key}={value}" for key, value in TINY.items())
    arm = Arm("hydra", 0.7, s2ap=False)
    job = Job(arm, 0, arm.recipe("digits", 0, overrides), 2, work)
    assert job.finished
    splits, masks = job.recipe.load_data(), []
    data = (splits.train.images, splits.train.labels, (splits.validation.images, splits.validation.labels))
    for seed in (0, 1000):
        masks.append(prune(dense_network(job), *data, job.recipe.pruning, run=Run(seed)).masks)
    kept = read_run(job.folder).masks
    assert all((mask == kept[name]).all() for name, mask in masks[0].items())
    stability = pairwise(masks).mean
    assert 0 < stability.flip_rate < stability.chance
    assert json.loads(job.searches_file.read_bytes())["mean"]["flip_rate"] == stability.flip_rate


def test_a_second_start_repeats_nothing(measured: tuple[Path, Result]) -> None:
    work, first = measured
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    again = start(work)
    assert again.exit_code == 0, again.output
    assert "4 of 4 runs reused" in again.output
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before
    rows = [line for line in first.output.splitlines() if line.startswith("| ")]
    assert [line for line in again.output.splitlines() if line.startswith("| ")] == rows[: len(rows) - 3]


def test_the_document_names_every_figure_of_a_run_and_every_option(measured: tuple[Path, Result]) -> None:
    from s2ap_train.commands.prune.cli import METHODS, prune

    text = (BENCHMARKS.parent / "docs" / "s2ap.md").read_text(encoding="utf-8")
    metrics = runs(measured[0])["hydra-s2ap-0.7-seed0"].metrics
    options = [parameter.opts[-1] for parameter in prune.params if parameter.param_type_name == "option"]
    names = [*metrics, *options, *METHODS, *(key for key in metrics["stability"])]
    assert not [name for name in names if name not in {"format_version", "--output"} and f"`{name}" not in text]


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (("--bases", "magnitude"), {}, "compares methods of scores"),
        (("--bases", "twin-rep"), {}, "twin-rep"),
        ((), {"finetune__weight_radius": 0}, "fine-tuned with finetune.weight_radius above 0, found 0"),
        (("--sparsities", "1.5"), {}, "it is the fraction that is removed"),
        (("--sparsities", "half"), {}, "'half' is not a list like 0.5,0.8"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    benchmarks: None, tmp_path: Path, options: tuple[str, ...], changes: dict[str, object], message: str
) -> None:
    result = start(tmp_path / "work", *options, **changes)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(measured: tuple[Path, Result], tmp_path: Path) -> None:
    options = ("--workers", "2", "--rounds", "0", "--bases", "hydra", "--json", str(tmp_path / "figures.json"))
    command = [sys.executable, str(BENCHMARKS / "s2ap.py"), *arguments(tmp_path / "work", *options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (two,) = json.loads((tmp_path / "figures.json").read_text())["results"]
    (one,) = json.loads((measured[0] / "figures.json").read_text())["results"]
    for arm in ("plain", "s2ap"):
        assert {k: v for k, v in two[arm].items() if "seconds" not in k} == {
            k: v for k, v in one[arm].items() if "seconds" not in k
        }
