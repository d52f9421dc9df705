"""`s2ap-defend score-model`: the model, its figures and its report; interrupted, resumed, and reused by harden."""

import base64
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tests.train.forked_process import ended, forked
from tests.train.toy_data import same

from s2ap_defend.commands.main import run
from s2ap_defend.progress import Reporter
from s2ap_train.hardening.parts import PartList
from s2ap_train.purifier.denoisers import FullGaussian
from s2ap_train.purifier.score_report import error_table, sample_pictures, training_curve
from s2ap_train.purifier.unet import UNet
from s2ap_train.recipe import load_recipe
from s2ap_train.storage.checkpoint import load_checkpoint
from s2ap_train.storage.lock import locked_folder
from s2ap_train.storage.parts import PartStore

EPOCHS = 2
SET = ("score_model.width=8", f"score_model.epochs={EPOCHS}")
PNG = b"\x89PNG\r\n\x1a\n"


def arguments(folder: Path, *more: str, overrides: tuple[str, ...] = SET) -> list[str]:
    return ["score-model", "digits", "-o", str(folder), *more, *(part for one in overrides for part in ("--set", one))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one command, in which the network is too small and its training too short for good figures."""
    folder = tmp_path_factory.mktemp("score") / "run"
    assert run(arguments(folder)) == 0
    return folder


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_the_folder_holds_model_figures_and_report(trained: Path) -> None:
    names = {path.name for path in trained.iterdir() if not path.name.startswith(".")}
    assert names == {"score-model", "metrics.json", "report.html", "training.png", "denoising.png", "samples.png"}
    metrics = metrics_of(trained)
    assert (metrics["name"], metrics["seed"], metrics["samples"]) == ("digits", 0, 8)
    assert (metrics["device"], metrics["processes"], metrics["precision"]) == ("cpu", 1, "32")
    tensors, record = load_checkpoint(trained / "score-model")
    assert metrics["architecture"] == record["architecture"]
    assert metrics["parameters"] == sum(t.numel() for t in tensors.values())
    assert len(metrics["history"]) == EPOCHS
    assert metrics["validation_error"] == metrics["history"][-1]["validation_error"]
    assert [set(row) for row in metrics["denoising"]] == [{"sigma", "net", "gaussian", "gaussian_expected"}] * 8
    assert metrics["seconds"] > 0


def test_the_page_needs_nothing_else_and_shows_the_pictures_that_lie_beside_it(trained: Path) -> None:
    page = (trained / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|src=\"(?!data:)", page)
    inside = [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert inside == [(trained / name).read_bytes() for name in ("training.png", "denoising.png", "samples.png")]
    assert all(picture.startswith(PNG) for picture in inside)
    for row in metrics_of(trained)["denoising"]:
        assert f"<td>{row['net']:.3f}</td>" in page
        assert f"<td>{row['gaussian']:.3f}</td>" in page


def test_the_same_command_again_trains_and_writes_nothing(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*.*")}
    assert run(arguments(trained)) == 0
    assert "score-model: reused" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*.*")} == before


def test_harden_reuses_it_where_the_settings_agree(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("digits", SET)
    splits = recipe.load_data()
    store = PartStore(trained, Reporter())
    stored = store.read(PartList(recipe, splits).score_models()[-1])
    assert stored is not None
    net = stored.model
    kept, _ = load_checkpoint(trained / "score-model")
    assert same({f"weight.{name}": value for name, value in net.state_dict().items()}, kept)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    other = load_recipe("digits", (*SET, "score_model.sigma_max=0.5"))
    assert store.read(PartList(other, splits).score_models()[-1]) is None


def test_a_killed_command_goes_on_and_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    """kill -9 after the first of many epochs, then the same command again, here for fewer."""
    folder = tmp_path / "killed"
    command = arguments(folder, overrides=("score_model.width=8", "score_model.epochs=6"))
    process = forked(run, command)
    deadline = time.monotonic() + 120
    while not list(folder.glob("score-model.unfinished/snapshot-*/checkpoint.json")):
        assert time.monotonic() < deadline, "no epoch was kept"
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert not (folder / "score-model").exists()
    assert run(command) == 0
    assert run([*command[:3], str(tmp_path / "whole"), *command[4:]]) == 0
    resumed, whole = (load_checkpoint(tmp_path / name / "score-model") for name in ("killed", "whole"))
    assert same(whole[0], resumed[0])
    assert whole[1]["history"] == resumed[1]["history"]
    assert not (folder / "score-model.unfinished").exists()


def test_options_change_the_recipe_and_more_samples_make_a_new_report(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(trained, "--samples", "3")) == 0
    assert metrics_of(trained)["samples"] == 3
    assert "score-model: reused" in capsys.readouterr().out
    more = ("--epochs", "1", "--seed", "4", "--size", "fast", "--precision", "bf16", "--accelerator", "cpu")
    assert run(arguments(tmp_path / "other", *more, overrides=())) == 0
    metrics = metrics_of(tmp_path / "other")
    assert (metrics["seed"], metrics["precision"], metrics["score_model"]["size"]) == (4, "bf16", "fast")
    assert metrics["architecture"]["width"] == 8
    assert len(metrics["history"]) == 1


def test_what_cannot_work_is_said_in_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here")
    folder = tmp_path / "new"
    cases = {
        ("svhn-wrn28-4", str(folder)): "has no score_model; use one that hardens",
        ("digits", str(folder), "--set", "score_model.sigma_mx=1"): "did you mean 'sigma_m",
        ("digits", str(folder), "--set", "purifier.sgma=1"): "did you mean 'sigma'",
        ("digits", str(folder), "--set", "score_model.width=12"): "score_model: width is 12; give a multiple of 8",
        (
            "digits",
            str(folder),
            "--set",
            "score_model.multipliers=[1,1,1,1,1]",
        ): "recipe digits: score_model: images of 8x8 cannot be halved 4 times",
        ("digits", str(tmp_path / "file")): "cannot be written",
    }
    for (recipe, output, *more), message in cases.items():
        assert run(["score-model", recipe, "-o", output, *more]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not list(tmp_path.glob("new/score-model*"))


def test_the_table_says_where_the_closed_form_is_no_worse() -> None:
    rows = [
        {"sigma": 0.1, "net": 0.4, "gaussian": 0.5, "gaussian_expected": 0.49},
        {"sigma": 0.5, "net": 0.3, "gaussian": 0.3, "gaussian_expected": 0.28},
    ]
    table = error_table(rows)
    assert table.rows == (("0.100", "1.000", "0.500", "0.490", "0.400"), ("0.500", "1.000", "0.300", "0.280", "0.300"))
    assert table.notes == ("At sigma 0.500 the closed form is no worse than the network: train it longer.",)
    assert error_table(rows[:1]).notes == ()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_of_any_number_of_channels_and_one_epoch_can_be_drawn(channels: int) -> None:
    images = torch.rand(3, channels, 8, 6, generator=torch.Generator().manual_seed(0))
    assert sample_pictures(UNet(channels, 8), FullGaussian(images), images, (0.1, 0.3)).startswith(PNG)
    assert training_curve([{"loss": 1.0, "validation_error": 0.5}]).startswith(PNG)


@pytest.mark.slow  # starting processes takes seconds
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPU cores for two processes")
def test_what_two_processes_trained_one_reuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(tmp_path / "two", "--accelerator", "cpu", "--devices", "2")) == 0
    assert metrics_of(tmp_path / "two")["processes"] == 2
    assert run(arguments(tmp_path / "two", "--accelerator", "cpu")) == 0
    assert "score-model: reused" in capsys.readouterr().out


def test_a_finished_model_of_other_settings_is_replaced_only_when_that_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(trained, folder)
    before = (folder / "score-model" / "weights.safetensors").read_bytes()
    other = arguments(folder, overrides=("score_model.width=8", "score_model.epochs=1"))
    assert run(other) == 2
    assert "holds a score model that was trained with other settings; name another folder" in capsys.readouterr().err
    assert (folder / "score-model" / "weights.safetensors").read_bytes() == before
    assert run([*other, "--overwrite"]) == 0
    assert "score-model: stale, its settings changed" in capsys.readouterr().out
    assert len(metrics_of(folder)["history"]) == 1
    assert run(other) == 0, "now the settings agree"


def test_a_score_model_of_a_single_noise_level_has_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ("score_model.width=8", "score_model.epochs=1", "score_model.sigma_min=0.2", "score_model.sigma_max=0.2")
    assert run(arguments(tmp_path / "one", overrides=one)) == 0
    metrics = metrics_of(tmp_path / "one")
    assert [row["sigma"] for row in metrics["denoising"]] == [0.2]
    (epoch,) = metrics["history"]
    assert epoch["validation_error"] == epoch["validation_error_0.2"]
    table = [line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("0.")]
    assert [line.split()[0] for line in table] == ["0.200"]


def test_two_runs_in_one_folder_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked_folder(trained):
        assert run(arguments(trained)) == 2
    assert f"another process is working in {trained}; wait for it" in capsys.readouterr().err
    assert run(arguments(trained)) == 0
