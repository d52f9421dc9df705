"""`harden` on other networks and images, as little as it can do: a mobile network, an ONNX file of wide images."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.export.commands.test_tutorial import TINY
from torch import nn

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import run
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import CLASSIFIER, cut_stage

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def photos(shape: tuple[int, int, int], classes: int, n: int = 260) -> tuple[np.ndarray, np.ndarray]:
    """own.npz: images of any brightness, which says the class; those near a border can be attacked."""
    generator = np.random.default_rng(0)
    brightness = generator.permutation(np.arange(n) / n)
    labels = (brightness * classes).astype(np.int64)
    noise = generator.random((n, *shape), dtype=np.float32)
    images = (0.2 * noise + 0.8 * brightness[:, None, None, None]).astype(np.float32)
    np.savez("own.npz", images=images, labels=labels)
    return images, labels


def harden(*options: str) -> None:
    tiny = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    changed = {"members.jurors.pretraining.epochs": 6, "adversarial.epochs": 6}  # enough to tell dark from bright
    changed |= {"evaluation.attacks": '"fgsm,unrolled-pgd"'}
    tiny += [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
    tiny += ["--set", "adversarial.average_decay=0", "--set", "members.jurors.pretraining.average_decay=0"]
    common = ["--data", "own.npz", "--effort", "quick", "--eps", "0.1", "-o", "model.onnx", "--workers", "1"]
    assert run(["harden", *common, *tiny, *options]) == 0
    evaluated = ["--attacks", "fgsm", "--samples", "10", "--workers", "1"]
    assert run(["evaluate", "model.onnx", *evaluated]) == 0
    assert run(["inspect", "model.onnx"]) == 0


def learn(network: nn.Module, images: np.ndarray, labels: np.ndarray, *, epochs: int, lr: float) -> None:
    """Adam on the cross-entropy of what the network gives, logits or probabilities; it is left in eval mode."""
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(network.parameters(), lr)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            loss = nn.functional.nll_loss(log_probabilities(network, x[rows]), y[rows])
            optimiser.zero_grad(), loss.backward(), optimiser.step()
    network.eval()


def log_probabilities(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found = network(x)
    return found.clamp_min(1e-9).log() if isinstance(network[-1], nn.Softmax) else found.log_softmax(1)


def assert_classifier_is(network: nn.Module, images: np.ndarray) -> None:
    """The file's classifier gives the network's log-probabilities within 1e-5, relatively where they are large."""
    stage = cut_stage(open_model_file(Path("model.onnx")).proto, CLASSIFIER).SerializeToString()
    (found,) = OnnxRuntimeEngine(stage, device="cpu", threads=1).run({"image": images}, ["log_probabilities"])
    with torch.no_grad():
        wanted = log_probabilities(network, torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_torchvisions_mobile_network_on_images_that_are_no_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = photos((3, 64, 48), 3)
    Path("mobile.py").write_text(
        "from functools import partial\nfrom torch import nn\nfrom torchvision.models import mobilenet_v3_small\n"
        "def build(classes):\n"
        "    small = mobilenet_v3_small(num_classes=classes, norm_layer=partial(nn.BatchNorm2d, momentum=0.3))\n"
        "    return nn.Sequential(small)\n"
    )
    monkeypatch.syspath_prepend(".")
    torch.manual_seed(0)
    network = importlib.import_module("mobile").build(3)
    learn(network, images, labels, epochs=5, lr=0.003)
    torch.save(network.state_dict(), "best.pt")
    harden("--model", "mobile:build", "--weights", "best.pt", "--normalised-inside", "--set", "adversarial.lr=0.02")
    assert DefendedClassifier.load("model.onnx")(images[:3]).label.shape == (3,)
    assert_classifier_is(network, images[:5])


def test_an_onnx_file_of_two_classes_and_wide_images() -> None:
    images, labels = photos((3, 48, 192), 2)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2), nn.Softmax(1)
    )
    learn(network, images, labels, epochs=20, lr=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.from_numpy(images[:1]),), "own.onnx", input_names=["pixels"], dynamo=False)
    small = '{name = "small_cnn", widths = [8, 8], pool_after = [0, 1]}'
    harden("--onnx", "own.onnx", "--set", f"given.robust_model={small}", "--set", "adversarial.lr=0.05")
    assert_classifier_is(network, images[:5])
