"""Images that are not square, and arrays of four channels, from data to a measured file and its verdicts."""

from pathlib import Path

import numpy as np
import pytest
from tests.export.small_recipe import OVERRIDES

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import run
from s2ap_defend.model_file import open_model_file

pytestmark = pytest.mark.slow  # trains a small defence for each

CLASSES = 4
LESS = {
    "adversarial.epochs": 6,
    "plain.epochs": 4,
    "members.robust.count": 1,
    "members.random_channel.count": 0,
    "score_model.fold": 2,
    "evaluation.samples": 10,
    "evaluation.attacks": '"pgd,one-pixel"',
    "decision_choice.samples": 10,
    "decision_choice.steps": 1,
    "decision_choice.targets": 1,
    "decision_choice.juror_weights": "[1.0]",
    "decision_choice.jury_shares": "[0.8]",
    "decision_choice.amplifications": "[3.0]",
    **{f"decision_choice.{key}": "[]" for key in ("opening", "jurors_see", "sensors_see", "purify", "signals")},
}


def write_blocks(path: Path, shape: tuple[int, int, int]) -> Path:
    """A class is a pattern of blocks of 4x4 pixels; images of little contrast are easy to attack, others are not."""
    random = np.random.default_rng(0)
    channels, height, width = shape
    blocks = random.integers(0, 2, (CLASSES, 1, -(-height // 4), -(-width // 4)))
    patterns = np.kron(blocks, np.ones((1, 1, 4, 4)))[:, :, :height, :width].repeat(channels, 1) - 0.5
    arrays = {}
    for part, count in {"train": 1000, "test": 40}.items():
        labels = np.arange(count) % CLASSES
        contrast = random.uniform(0.12, 0.9, (count, 1, 1, 1))
        images = 0.5 + contrast * patterns[labels] + 0.06 * random.standard_normal((count, *shape))
        arrays |= {f"x_{part}": (255 * images.clip(0, 1)).astype(np.uint8), f"y_{part}": labels}
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("shape", [(3, 20, 12), (4, 13, 10)])
def test_a_defence_of_images_of_any_shape_is_trained_attacked_and_served(
    tmp_path: Path, shape: tuple[int, int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_blocks(tmp_path / "data.npz", shape)
    table = f'{{source="npz",root="{data}",validation=60,fit=200,calibration=200}}'
    changes = [part for key, value in LESS.items() for part in ("--set", f"{key}={value}")]
    path = tmp_path / "model.onnx"
    arguments = ["harden", "digits", "-o", path, "--workers", "1", "--choose", "unmeasured", "--set", f"data={table}"]
    assert run([str(argument) for argument in (*arguments, *OVERRIDES, *changes)]) == 0
    file = open_model_file(path)
    assert file.manifest.input.shape == shape
    assert {row.attack for row in file.manifest.measured} >= {"clean", "pgd"}
    with np.load(data) as arrays:
        images = arrays["x_test"].astype(np.float32) / np.float32(255)
        labels = arrays["y_test"]
    verdicts = DefendedClassifier.load(path, device="cpu")(images)
    assert (verdicts.label == labels).mean() > 0.6
    assert np.abs(verdicts.purified - images).max() > 0
    report = tmp_path / "report.html"
    evaluate = ["evaluate", path, "--recipe", "digits", "--set", f"data={table}", "--samples", "10", "--workers", "1"]
    assert run([str(word) for word in (*evaluate, "--attacks", "fgsm,one-pixel", "--report", report)]) == 0
    assert report.read_text().count("data:image/png") > 1, "plots and pictures of attacked images"
    calibrate = [
        "calibrate",
        path,
        "--data",
        data,
        "--calibrate-on",
        "all",
        "--alpha",
        "0.2",
        "-o",
        tmp_path / "again.onnx",
    ]
    assert run([str(word) for word in calibrate]) == 0
    assert open_model_file(tmp_path / "again.onnx").manifest.input.shape == shape
    capsys.readouterr()
