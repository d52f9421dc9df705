"""What `harden` and the sweep alone refuse before they train: settings that fit no image, and folders in use."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.export.small_recipe import OVERRIDES

from s2ap_defend import RecipeError
from s2ap_defend.commands.main import run
from s2ap_defend.progress import Reporter
from s2ap_train.commands.choose_purifier import choose_purifier as sweep_alone
from s2ap_train.hardening.train import train_networks
from s2ap_train.recipe import load_recipe
from s2ap_train.storage.lock import locked_folder


def test_what_cannot_work_is_told_by_harden_and_the_sweep_alone_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    alone = (["digits", "--work-dir", str(work)], sweep_alone)
    both = ((["harden", "digits", "-o", str(tmp_path / "m.onnx"), "--work-dir", str(work)],), alone)
    for change, message in {
        "purifier.bank_size=130": "bank_size 130, but images of 1x8x8 allow at most 128 directions",
        "choice.settings=[{bank_size=[256]}]": "bank_size 256, but images of 1x8x8",
        "purifier.bank_seed=-1": "bank_seed must be at least 0, found -1",
        "data.fit=10": "data.fit is 10 images and evidence needs 20 that are answered right",
        "purifier.sigma=0.7": "sigma 0.7, which is trained from sigma_min 0.05 to sigma_max 0.6 alone",
    }.items():
        for arguments, *command in both:
            assert run([*arguments, *OVERRIDES, "--set", change], *command) == 2
            error = capsys.readouterr().err
            assert message in error
            assert error.count("\n") == 1
    assert run([*alone[0], "--json", str(tmp_path)], sweep_alone) == 2
    assert "is a folder; name a file to write" in capsys.readouterr().err
    assert not work.exists()


def test_harden_the_sweep_alone_and_members_alone_stay_out_of_a_folder_in_which_another_process_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    holder = "import sys, time; from pathlib import Path; from s2ap_train.storage.lock import locked_folder\n"
    holder += "with locked_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holder, str(work)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            commands = {
                "harden": (["harden", "digits", "-o", str(tmp_path / "m.onnx"), "--work-dir", str(work)],),
                "sweep": (["digits", "--work-dir", str(work)], sweep_alone),
            }
            for arguments, *command in commands.values():
                assert run([*arguments, *OVERRIDES], *command) == 2
                assert f"another process is working in {work}; wait for it" in capsys.readouterr().err
            recipe = load_recipe("digits", OVERRIDES[1::2])
            with pytest.raises(RecipeError, match="another process is working in"):
                train_networks(recipe, recipe.load_data(), work, Reporter())
        finally:
            other.kill()
    assert [path.name for path in work.iterdir()] == [".lock"]
    with locked_folder(work):
        pass  # freed with the process that held it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["harden", "digit", "-o", "x.onnx"], "did you mean 'digits'"),
        (["harden", "digits", "-o", "x.onnx", "--set", "purifer.sigma=1"], "did you mean 'purifier'"),
        (["harden", "digits"], "Missing option '-o'"),
        (
            ["harden", "digits", "-o", "x.onnx", "--choose", "luck"],
            "'luck' is not one of 'recipe', 'validation', 'unmeasured'",
        ),
        (
            ["harden", "digits", "-o", "x.onnx", "--set", "choice.settings=[{sigma=[-1.0]}]"],
            "recipe digits: choice.settings.0: this cannot purify",
        ),
        (["harden", "digits", "-o", "/proc/no/model.onnx"], "/proc/no/model.onnx cannot be written"),
        (["evaluate", "missing.onnx", "--recipe", "digits"], "missing.onnx does not exist"),
    ],
)
def test_what_cannot_work_is_said_in_one_line_before_any_training(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not list(tmp_path.iterdir())
