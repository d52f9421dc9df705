"""ONNX Runtime's telemetry is off before it is imported: nothing is written anywhere."""

import os
import subprocess
import sys

import pytest

LOAD_AND_INFER = """
import sys
import numpy as np
from s2ap_defend import DefendedClassifier
classifier = DefendedClassifier.load(sys.argv[1], device="cpu", threads=1)
classifier(np.zeros((1, *classifier.input_shape), np.float32))
"""


@pytest.mark.parametrize(
    "command", [["-c", LOAD_AND_INFER], ["-m", "s2ap_defend", "classify"]], ids=["embedded", "command"]
)
def test_a_fresh_home_stays_empty(tiny_model_path, tmp_path, command):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    hidden = ("XDG_", "ORT_", "CI", "GITHUB_", "TF_BUILD")  # continuous integration turns telemetry off as well
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    arguments = [str(tiny_model_path)]
    if "classify" in command:
        from PIL import Image

        Image.new("L", (8, 8)).save(here / "black.png")
        arguments.append(str(here / "black.png"))
    subprocess.run([sys.executable, *command, *arguments], env=environment, cwd=here, check=True, timeout=120)
    assert [str(path) for path in home.rglob("*")] == []
    assert [path.name for path in here.iterdir()] in ([], ["black.png"])
