"""Users' networks and bad options in `prune`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.train.commands.pruning_command import arguments

from s2ap_defend.commands.main import run
from s2ap_train.models import build
from s2ap_train.storage.checkpoint import restore
from s2ap_train.storage.run_folder import read_run

TRANSFORMER = """
from torch import nn
from torchvision.models import VisionTransformer

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.gate, self.body = nn.Hardsigmoid(), VisionTransformer(8, 4, 1, 2, 16, 32, num_classes=classes)

    def forward(self, x):
        return self.body(self.gate(self.stem(x))).softmax(1)

class Bare(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(64, classes).weight.detach().T.clone())

    def forward(self, x):
        return x.flatten(1) @ self.weight
"""


@pytest.fixture
def transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_transformers.py").write_text(TRANSFORMER)
    yield "my_transformers"
    sys.modules.pop("my_transformers", None)


@pytest.mark.parametrize("structure", ["channel", pytest.param("unstructured", marks=pytest.mark.slow)])
def test_a_transformer_that_answers_with_probabilities_is_pruned_and_measured_whole(
    tmp_path: Path, transformers: str, structure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {
        "measures__sensitivity": "true",
        "measures__samples": 20,
        "finetune__epochs": 1,
        "pruning__training__epochs": 2,
    }
    options = ("-o", str(tmp_path / "run"), "--model", f"{transformers}:Net", "--structure", structure)
    code = run(arguments(*options, "--work-dir", str(tmp_path / "work"), **short))
    said = capsys.readouterr()
    assert code == 0 or "collapse" in said.err, "it is far too small to learn in two epochs"
    assert "the network answers with probabilities: their logarithms are taken as logits" in said.out
    assert ("all channels stay in network." in said.out) == (structure == "channel")
    found = read_run(tmp_path / "run")
    assert found.metrics["left_out"] == {}
    assert found.metrics["hessian_eigenvalue"] is not None
    assert found.metrics["sensitivity"]["checks"]
    assert (found.metrics["flops"] < found.metrics["flops_dense"]) == (structure == "channel")
    restore(build(found.record["architecture"]), found.weights)


def test_a_network_without_layers_is_refused_before_it_is_trained(
    tmp_path: Path, transformers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments("-o", str(tmp_path / "run"), "--model", f"{transformers}:Bare")) == 2
    said = capsys.readouterr()
    assert "are in no layer that can be pruned (network.weight (64, 10)); hold them in nn.Linear" in said.err
    assert "dense" not in said.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sparsity", "1.5"), "it is the fraction that is removed"),
        (("--gamma", "wide"), "radius is 'wide': Input should be"),
        (("--model", "s2ap_train.nowhere:make"), "s2ap_train.nowhere"),
        (("--data", "/nowhere"), "come with scikit-learn"),
        (("--set", "adversarial.loss=natural", "--set", "adversarial.eps=0"), "say --natural if that is what you want"),
        (("--accelerator", "cuda"), "no CUDA device" if not torch.cuda.is_available() else ""),
        (("--method", "s2ap", "--structure", "2:4", "--sparsity", "0.9"), "2:4 removes exactly half"),
        (("--method", "flying-bird", "--structure", "channel"), "prunes single weights only"),
        (("--method", "hydra", "--gamma", "0.5"), "--gamma is for S2AP, the method is hydra"),
        (("--set", "finetune.loss=natural", "--set", "finetune.eps=0"), "finetune trains without attacks"),
        (("--set", "pruning.method=[1]"), "pruning.method is [1]"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    if not message:
        pytest.skip("this machine has what the option asks for")
    assert run(arguments("-o", str(tmp_path / "run"), *options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
