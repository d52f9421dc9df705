"""`harden` on 1,000 classes, all the way to a file."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.export.commands.test_tutorial import TINY

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import run

CLASSES, OF_EACH = 1000, 6
TINIEST = TINY | {"plain.epochs": 10, "adversarial.epochs": 3}
NETS = """
from torch import nn

def build(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, classes))
"""


@pytest.mark.slow
def test_a_thousand_classes_become_a_file_that_is_attacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "thousand.py").write_text(NETS)
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(CLASSES), OF_EACH)
    noise = 0.05 * generator.standard_normal((len(labels), 3, 8, 8), dtype=np.float32)
    images = np.clip(generator.random((CLASSES, 3, 8, 8), dtype=np.float32)[labels] + noise, 0, 1)
    np.savez("own.npz", images=images, labels=labels)
    tiny = [part for key, value in TINIEST.items() for part in ("--set", f"{key}={value}")]
    own = ["--data", "own.npz", "--model", "thousand:build", "--effort", "quick", "--eps", "0.02", "--workers", "1"]
    assert run(["harden", *own, "-o", "model.onnx", *tiny]) == 0
    said = capsys.readouterr().out
    (unfitted,) = re.findall(r"note: (\d+) of 1000 classes have no image among the \d+ of the fit part", said)
    assert int(unfitted) > 0
    largest = max(math.prod(one.dims) for one in onnx.load("model.onnx").graph.initializer)
    assert largest < CLASSES**2, "no table of classes by classes"
    classifier = DefendedClassifier.load("model.onnx", device="cpu")
    assert len(classifier.classes) == CLASSES
    answered = classifier(images[:CLASSES])
    assert (answered.label == labels[:CLASSES]).mean() > 0.1  # a hundred times more than by chance
    assert "NaN" not in classifier.manifest.model_dump_json()
