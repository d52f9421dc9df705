"""`harden --robust-weights`: an adversarially trained checkpoint of another network is the robust classifier."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.export.commands.test_tutorial import TINY
from torch import Tensor, nn

from s2ap_defend.commands.main import run
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import cut_stage, member_scope
from s2ap_train.data import load_data
from s2ap_train.models import build
from s2ap_train.storage.checkpoint import load_checkpoint

EPS, CLASSES = 0.1, 3
MEAN, STD = 0.3, 0.4
NETWORKS = """
from torch import nn

def plain(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def robust(classes):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, classes),
    )
"""


class Normalise(nn.Module):
    """As RobustBench's: the first layer of what is trained, its numbers in the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([MEAN]).reshape(1, 1, 1))
        self.register_buffer("std", torch.tensor([STD]).reshape(1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def trained(network: nn.Module, x: Tensor, y: Tensor, *, eps: float, steps: int) -> nn.Module:
    """Against one gradient step of length eps from a random start (Wong et al. 2020), or on clean images."""
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(steps):
        moved = (x + eps * (2 * torch.rand_like(x) - 1)).requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(network(moved), y), moved)
        attacked = (x + (moved.detach() + 1.25 * eps * slope.sign() - x).clamp(-eps, eps)).clamp(0, 1)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(attacked), y).backward()
        optimiser.step()
    return network.eval()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0, 1 and 2, a network that knows them, and an adversarially trained one as others save it."""
    home = tmp_path_factory.mktemp("robust")
    (home / "robust_networks.py").write_text(NETWORKS)
    exec(NETWORKS, made := {})  # noqa: S102  the same source
    data = load_data("digits", 0).train
    images, labels = (part[data.labels < CLASSES][:300] for part in (data.images, data.labels))
    np.savez(home / "digits.npz", images=images, labels=labels)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    torch.manual_seed(0)
    plain = trained(made["plain"](CLASSES), x, y, eps=0.0, steps=40)
    torch.save(plain.state_dict(), home / "plain.pt")
    robust = trained(nn.Sequential(Normalise(), made["robust"](CLASSES)), x, y, eps=EPS, steps=60)
    state = {f"module.{name}": value for name, value in robust.state_dict().items()}
    beside = {"epoch": 60, "best": np.float64(0.9), "args": argparse.Namespace(lr=0.02)}
    torch.save({**beside, "state_dict": state}, home / "robust.pt")
    return home


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", [*sys.path])


def harden(*options: str) -> int:
    tiny = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    plain = ["--data", "digits.npz", "--model", "robust_networks:plain", "--weights", "plain.pt"]
    rest = ["--effort", "quick", "--eps", str(EPS), "-o", "model.onnx", "--workers", "1", *tiny]
    return run(["harden", *plain, *rest, *options])


def test_the_robust_classifier_is_the_checkpoints_network_and_then_pruned(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--robust-model", "robust_networks:robust", "--robust-weights", "robust.pt"]
    assert harden(*given, "--set", "finetune.lr=1e-6", "--set", "finetune.average_decay=0") == 0
    said = capsys.readouterr().out
    for part in ("under the key 'state_dict'", "'module.' was taken off", "'1.' was taken off", "mean 0.3, std 0.4"):
        assert part in said
    assert "robust classifier: as given, " in said
    checkpoint = torch.load(home / "robust.pt", weights_only=False)["state_dict"]
    tensors, record = load_checkpoint(home / "model.onnx.training" / "adversarial")
    own = {name.removeprefix("weight.network."): value for name, value in tensors.items()}
    assert record["architecture"]["factory"] == "robust_networks:robust"
    weights = {name: value for name, value in own.items() if f"module.1.{name}" in checkpoint}
    assert len(weights) == len(checkpoint) - 2, "all but mean and std"
    assert all(torch.equal(value, checkpoint[f"module.1.{name}"]) for name, value in weights.items())

    tensors, record = load_checkpoint(home / "model.onnx.training" / "pruned")
    mask = tensors["mask.network.0.weight"]
    assert mask.float().mean() == pytest.approx(0.5, abs=0.02)
    pruned = tensors["weight.network.0.weight"]
    torch.testing.assert_close(pruned, checkpoint["module.1.0.weight"] * mask, atol=1e-4, rtol=0)

    network = build(record["architecture"])
    network.load_state_dict(
        {name.removeprefix("weight."): value for name, value in tensors.items() if name.startswith("weight.")}
    )
    file = open_model_file(home / "model.onnx")
    stage = cut_stage(file.proto, member_scope(0)).SerializeToString()
    images = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    (found,) = OnnxRuntimeEngine(stage, device="cpu", threads=1).run({"image": images}, ["log_probabilities"])
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images)).log_softmax(dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--robust-mean", ".3"], "--robust-mean belongs to the network of --robust-weights"),
        (["--robust-weights", "robust.pt"], "not those of the network"),
    ],
)
def test_what_does_not_belong_together_is_one_line(options: list[str], said: str, capsys) -> None:
    assert harden("-o", "other.onnx", *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
