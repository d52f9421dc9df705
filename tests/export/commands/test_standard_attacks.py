"""`evaluate` with its larger presets on files of users' own networks, to its end: every attack, check and row."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from tests.export.commands.test_tutorial import TINY
from tests.train.few_images import write_npz
from torch import nn

from s2ap_defend.commands.main import run
from s2ap_train.redteam.attacks.catalogue import PRESETS, Preset

pytestmark = pytest.mark.slow

RESIDUAL = """
from torch import nn

class Residual(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8 * 4, classes)

    def forward(self, x):
        x = self.stem(x)
        x = nn.functional.relu(x + self.body(x), inplace=True)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))

def build(in_channels, classes):
    return Residual(in_channels, classes)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def photos(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """own.npz: a pattern a class, under noise."""
    with np.load(write_npz(Path("own.npz"), [280 // classes] * classes)) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return torch.from_numpy(images.astype(np.float32) / 255)[:, None], torch.from_numpy(labels)


def learn(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    network.eval()


def evaluated(capsys: pytest.CaptureFixture[str], *own: str, preset: Preset = "standard") -> dict[str, Any]:
    """The figures of all that the preset does, with little work, to a file of the classifier that the options name."""
    changed = TINY | {"adversarial.epochs": 6, "members.jurors.pretraining.epochs": 6}
    tiny = [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
    common = ["--data", "own.npz", "--effort", "quick", "--eps", "0.1", "--workers", "1"]
    assert run(["harden", *common, "-o", "model.onnx", *own, *tiny]) == 0
    capsys.readouterr()
    written = ["--json", "figures.json", "--report", "report.html"]
    work = ["--attacks", preset, "--samples", "6", *(["--budget", "quick"] if preset == "full" else [])]
    command = ["evaluate", "model.onnx", *work, "--workers", "1", *written]
    assert run(command) == 0
    first = capsys.readouterr()
    assert first.err == ""
    assert " nan" not in first.out.lower()
    assert "to be trained before the attacks, as no hardening trains them: wider, surrogate-base" in first.out
    assert Path("report.html").read_text().count("data:image/png") > 1
    figures: dict[str, Any] = json.loads(Path("figures.json").read_text())
    assert run(command) == 0
    again = json.loads(Path("figures.json").read_text())
    assert again["worst_case"] == figures["worst_case"]
    assert again["attacks"].keys() == figures["attacks"].keys()
    return figures


class Brightness(CalibrationDataReader):  # type: ignore[misc]
    """Images by which a graph is quantised."""

    def __init__(self, images: torch.Tensor) -> None:
        self.batches = iter([{"x": part.numpy()} for part in images.split(16)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def write_int8(images: torch.Tensor, network: nn.Module) -> Path:
    """own.onnx as engines for phones write it: convolutions of integers, of which torch has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
        torch.onnx.export(network, (images[:1],), "float.onnx", dynamo=False, **names)
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static("float.onnx", "own.onnx", Brightness(images[:64]), quant_format=QuantFormat.QOperator, **kinds)
    return Path("own.onnx")


def assert_whole(figures: dict[str, Any], preset: Preset = "standard") -> None:
    """Every attack of the preset was run or says why not, and nothing is claimed that an attack takes away."""
    ran, left_out = figures["attacks"].keys(), figures["not_run"]
    assert set(PRESETS[preset]) == ran | (left_out.keys() & set(PRESETS[preset]))
    assert len(ran) > 30
    assert all(reason for reason in left_out.values())
    assert {"transfer-base", "transfer-ensemble", "hopskipjump", "apgd-dlr", "unrolled-pgd"} <= ran
    worst = figures["worst_case"]
    for name, attack in figures["attacks"].items():
        if attack["norm"] == "linf":
            assert worst["label_accuracy"] <= attack["label_accuracy"] + 1e-9, name
    rows = {row["name"] for row in figures["ablation"]}
    assert {"adversarially trained", "wider, same compute", "robust classifier alone", "bare classifier"} <= rows
    assert {check["result"] for check in figures["checks"]} <= {"passed", "FAILED", "not judged"}
    unbounded = next(check for check in figures["checks"] if check["name"] == "unbounded")
    assert unbounded["result"] == "passed"


def test_a_residual_network_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = photos(3)
    Path("residual_of_a_test.py").write_text(RESIDUAL)
    sys.path.insert(0, ".")
    torch.manual_seed(0)
    network = importlib.import_module("residual_of_a_test").build(1, 3)
    learn(network, images, labels)
    torch.save(network.state_dict(), "best.pt")
    own = ["--model", "residual_of_a_test:build", "--weights", "best.pt", "--normalised-inside"]
    figures = evaluated(capsys, *own, preset="full")
    assert_whole(figures, "full")
    assert {"autoattack", "cw-l2"} <= figures["attacks"].keys()


def test_an_onnx_file_of_two_classes(capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = photos(2)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 2))
    learn(network, images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network.append(nn.Softmax(1)), (images[:1],), "own.onnx", dynamo=False)
    assert_whole(evaluated(capsys, "--onnx", "own.onnx"))


def test_a_classifier_of_8_bits_that_torch_cannot_differentiate(capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = photos(3)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 3, 3), nn.Flatten())
    learn(network, images, labels)
    graph = onnx.load(write_int8(images, network))
    assert sum(node.op_type == "QLinearConv" for node in graph.graph.node) == 2
    figures = evaluated(capsys, "--onnx", "own.onnx")
    said = "gradients of the classifier could not be had: operator ai.onnx.QLinearConv"
    assert any(text.startswith(said) for text in figures["configuration"]["weaknesses"])
    assert said in Path("report.html").read_text()
    assert said in Path("model.onnx.html").read_text()
    assert_whole(figures)
    assert {"square", "transfer-base", "hopskipjump"} <= figures["attacks"].keys()
    assert {figures["not_run"][name] for name in ("ila", "fia")} == {"no hidden layer of the classifier can be read"}
    capsys.readouterr()
    assert run(["inspect", "model.onnx"]) == 0
    assert said in capsys.readouterr().out.replace("\n", " ")
