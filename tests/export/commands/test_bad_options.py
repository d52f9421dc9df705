"""Options of `harden` that contradict each other, name what is not there, or would overwrite what is read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2ap_defend.commands.main import run


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and a file of weights."""
    home = tmp_path_factory.mktemp("own")
    for name in ("one", "two"):
        (home / "photos" / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(home / "photos" / name / f"{number}.png")
    torch.save({}, home / "best.pt")
    return home


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to harden: give --data FOLDER"),
        (["digits", "--effort", "quick"], "recipe digits says by itself how much is done"),
        (["--data", "photos", "--weights", "best.pt"], "--weights are of a network; name it with --model"),
        (["--data", "photos", "--mean", ".5"], "--mean and --std are for a network of your own; name it with --model"),
        (["--data", "photos", "--model", "mynets", "--mean", ".5"], "and --model mynets names none; name it with"),
        (["--data", "photos", "--model", "net.onnx"], "--model net.onnx is an ONNX file; name it with --onnx instead"),
        (
            ["--data", "photos", "--model", "best.pt"],
            "--model best.pt is a file of weights; --model names the function",
        ),
        (["--data", "photos", "--model", "nets/my.py"], "names a file; name the module and its function that returns"),
        (
            ["--data", "photos", "--model", "mynets:build", "--weights", "no.pt"],
            "--weights no.pt does not exist; name a",
        ),
        (["--data", "photos", "--onnx", "no.onnx"], "--onnx no.onnx does not exist; name a file"),
        (
            ["--data", "photos", "--onnx", "best.pt"],
            "best.pt is an archive as torch.save and torch.jit.save write them",
        ),
        (
            ["--data", "photos", "--model", "mynets:build", "--normalised-inside", "--std", ".5"],
            "leave --mean and --std",
        ),
        (["--data", "photos", "--model", "mynets:build", "--robust-model", "mynets:build"], "which is missing"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "photos", "--classes", "nowhere.txt"], "--classes nowhere.txt cannot be read"),
        (
            ["--data", "photos", "--model", "mynets:build", "--weights", "best.pt", "-o", "./best.pt"],
            "--output best.pt would overwrite best.pt, which is read; name another file to write",
        ),
        (["--data", "photos", "-o", "m.onnx", "--report", "m.onnx"], "--output and --report both write m.onnx"),
        (["--data", "photos", "-o", "/dev/null"], "/dev/null is a pipe or device; name a file to write"),
        (["--data", "photos", "--report", "photos"], "photos is a folder; name a file to write"),
        (["--data", "photos", "-o", "photos/m.onnx"], "--output photos/m.onnx lies in photos, which is read as images"),
        (["--data", "photos", "--work-dir", "photos"], "--work-dir photos lies in photos, which is read as images"),
        (["--data", "photos", "--image-size", "100000"], "'100000' is not a side or HEIGHTxWIDTH of 2 to 4096 pixels"),
        (["--data", "photos", "--image-size", "1x8"], "'1x8' is not a side or HEIGHTxWIDTH"),
        (["--data", "photos", "--seed", "4294967296"], "seed is 4294967296; give a number from 0 to 4294967295"),
        (["--data", "photos", "--eps", "8/0"], "'8/0' is not a budget above 0"),
        (["--data", "photos", "--eps", "8"], "'8' is not a budget above 0"),
        (["--data", "photos", "--mean", "a,b"], "'a,b' is not numbers"),
    ],
)
def test_bad_options_are_one_line_before_any_training(
    arguments: list[str], said: str, own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(own)
    assert run(["harden", "-o", "bad.onnx", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not list(own.glob("bad.onnx*"))
    assert (own / "best.pt").read_bytes()[:2] == b"PK"  # as torch wrote it
