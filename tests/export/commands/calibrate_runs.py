"""A small file, clean digits, and runs of `s2ap-defend calibrate` on them."""

import json
from pathlib import Path

import numpy as np
import pytest

from s2ap_defend.commands.main import run
from s2ap_train.data import ImageSet, load_digits


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    """120 digits."""
    return load_digits(seed=3).test.subset(slice(0, 120))


@pytest.fixture(scope="module")
def npz(digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=digits.images, labels=digits.labels)
    return path


@pytest.fixture
def model(tiny_model_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny file, which tests may lose."""
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model_path.read_bytes())
    return path


def figures(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert run(["calibrate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error of a command that must fail."""
    assert run(["calibrate", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err
