"""A network that cannot be shipped or attacked is refused before anything is trained, with the key that names it."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from rich.console import Console
from tests.export.any_networks import FALLBACKS, SHAPE
from tests.export.small_recipe import OVERRIDES
from tests.export.stage_runs import images
from torch import Tensor, nn

from s2ap_defend import DefendError
from s2ap_defend.commands.main import run
from s2ap_defend.progress import Reporter
from s2ap_export.hardening.beforehand import check_network, check_recipe
from s2ap_export.hardening.blame import layer_at_fault
from s2ap_train.models import Classifier, create
from s2ap_train.recipe import load_recipe

NETS = """
import torch
from torch import nn

class Spectrum(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes)

    def forward(self, images):
        return self.head(self.convolution(torch.fft.fft2(images).abs()).mean((2, 3)))

def spectrum(in_channels, classes):
    return Spectrum(in_channels, classes)
"""


class Given(Classifier):
    """A convolution, its means, and any function of them and the images."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__(3, 4, SHAPE[1])
        self.convolution, self.function, self.calls = nn.Conv2d(3, 4, 3), function, 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return SHAPE

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.convolution(x).mean((2, 3)))

    def arguments(self) -> dict[str, object]:
        return {}


def counted(network: nn.Module, logits: Tensor) -> Tensor:
    network.calls += 1  # type: ignore[operator]
    return logits * network.calls  # type: ignore[no-any-return]


def two_heads(network: nn.Module, logits: Tensor) -> object:
    return (logits, logits) if network.training else logits


def of_all(_: nn.Module, logits: Tensor) -> Tensor:
    return logits + 1e-6 * logits.sort(dim=0).values[:1]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (two_heads, "answers a tuple in training mode, expected logits of shape .* switch its other heads off"),
        (counted, "answers the same images differently the second time"),
        (of_all, "the network answers an image differently in another batch, by .* leave out what reads the batch"),
        (lambda _, x: x / (x - x), "answers numbers that are not finite on 8 images before it is trained"),
        (lambda _, x: (x - x.detach()).sqrt() + x, "the gradient of the network .* is not finite"),
        (lambda _, x: torch.fft.rfft(x, n=6).abs(), "cannot be differentiated: operator ai.onnx.DFT is not supported"),
    ],
    ids=["two heads", "a state", "the batch", "no number", "no gradient", "no twin"],
)
def test_what_no_file_may_hold_is_refused_with_the_true_reason(function: object, message: str) -> None:
    with pytest.raises(DefendError, match=message):
        check_network(Given(function), images(8, SHAPE))  # type: ignore[arg-type]


class AlwaysTraining(nn.BatchNorm2d):
    """Normalises by the batch, whatever mode it is told."""

    def train(self, mode: bool = True) -> nn.BatchNorm2d:  # noqa: ARG002
        return super().train()


class Normalised(Given):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__(lambda _, x: x)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x)).relu().mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm", [AlwaysTraining(4), nn.BatchNorm2d(4, track_running_stats=False)], ids=str)
def test_a_normalisation_by_the_batch_is_refused_by_name(norm: nn.Module) -> None:
    message = r"^layer norm \(\w+\): .*\(BatchNorm2d\(track_running_stats=False\), or one that stays in training mode\)"
    with pytest.raises(DefendError, match=message):
        check_network(Normalised(norm), images(8, SHAPE))


class Centred(nn.Module):
    """Takes the mean over the images away."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Looped(nn.Module):
    """Makes the number of images a Python number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.shape[0]), -1)[:, : x[0].numel()].reshape(int(x.shape[0]), *x.shape[1:])


class Rolled(nn.Module):
    """Adds a little of the next image."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * x.roll(1, 0)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Centred(), r"layer norm\.1 \(Centred\): cannot export a sum over the batch"),
        (Looped(), r"layer norm\.1 \(Looped\): cannot export this .*: it fixes the number of images"),
        (Rolled(), r"layer norm\.1 \(Rolled\): .* image"),
    ],
    ids=["mean", "number", "neighbour"],
)
def test_a_layer_that_reads_the_batch_or_its_size_is_named(layer: nn.Module, message: str) -> None:
    with pytest.raises(DefendError, match=message):
        check_network(Normalised(nn.Sequential(nn.ReLU(), layer)), images(8, SHAPE))


def test_nobody_is_blamed_for_what_no_layer_does() -> None:
    network = Given(of_all).eval()
    assert layer_at_fault(network, torch.from_numpy(images(8, SHAPE))) == ""
    assert layer_at_fault(Normalised(nn.BatchNorm2d(4)).eval(), torch.from_numpy(images(8, SHAPE))) == ""


def in_float64(network: nn.Module, logits: Tensor) -> Tensor:
    return (logits.double() * 2).float()


def test_what_tensorrt_refuses_is_refused_with_the_node_unless_the_recipe_does_without() -> None:
    message = r"stage network is not for TensorRT: network/\w+: Cast to float64, which .*; network/\w+ is double"
    with pytest.raises(DefendError, match=message) as refused:
        check_network(Given(in_float64), images(8, SHAPE))
    assert "set export.tensorrt = false" in str(refused.value)
    assert "MFLOPs" in check_network(Given(in_float64), images(8, SHAPE), tensorrt=False)


class Attending(Given):
    def __init__(self) -> None:
        super().__init__(lambda _, x: x)
        self.network = FALLBACKS["attention"]()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)  # type: ignore[no-any-return]


def test_it_is_told_who_wrote_a_network_and_what_it_costs() -> None:
    network = Attending()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert "MFLOPs, written by torch.onnx" in check_network(network, images(8, SHAPE))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_every_architecture_of_a_recipe_is_looked_at_once() -> None:
    recipe = load_recipe("digits", OVERRIDES[1::2])
    console = Console(file=io.StringIO(), width=200)
    check_recipe(recipe, recipe.load_data().fit.images[:8], 10, Reporter(console, line_every_s=0))
    told = console.file.getvalue().splitlines()[:-1]  # type: ignore[attr-defined]
    lines = [line.partition("; about")[0].split(maxsplit=2)[2].split(": ") for line in told]
    assert [key for key, note in lines if "MFLOPs" in note] == [
        "score_model",
        "model",
        "members.l1_norm[0]",
        "members.random_channel[0]",
    ]
    same = {key for key, note in lines if note == "the network of model"}
    assert same == {"members.robust.models[0]", "pruning", "members.robust[0]"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, in which a module of networks lies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "nets_of_a_test.py").write_text(NETS)
    yield tmp_path
    sys.modules.pop("nets_of_a_test", None)


@pytest.mark.parametrize("key", ["model", "members.robust.models[0]"])
def test_harden_names_the_key_of_a_network_that_cannot_be_attacked_and_trains_nothing(
    key: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = '"nets_of_a_test:spectrum"'
    change = f"model={value}" if key == "model" else f"members.robust.models=[{value}]"
    command = ["harden", "digits", "-o", "model.onnx", "--work-dir", "work", *OVERRIDES, "--set", change]
    for family in ("random_channel", "l1_norm"):
        command += ["--set", f"members.{family}.count=0"]
    assert run([*command, "--set", "detection.min_accept=2"]) == 2
    error = capsys.readouterr().err
    assert f"recipe digits: {key}: " in error
    assert "operator ai.onnx.DFT is not supported by the twin" in error
    assert error.count("\n") == 1
    assert not (here / "work").exists()


def onnx_classifier(path: Path, nodes: list[NodeProto], *constants: TensorProto) -> Classifier:
    """Images [N, 3, 5, 5] -> `y` [N, 2]."""
    declared = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *sizes])
        for name, sizes in (("x", (3, 5, 5)), ("y", (2,)))
    ]
    graph = helper.make_graph(nodes, "given", declared[:1], declared[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return create({"name": "onnx", "file": str(path)}, (3, 5, 5), 2)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [
                helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
                helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["pixels"]),
            ],
            r"^node q \(DynamicQuantizeLinear\): the network answers an image differently in another batch",
        ),
        (
            [
                helper.make_node("RandomNormalLike", ["x"], ["noise"]),
                helper.make_node("Add", ["x", "noise"], ["pixels"]),
            ],
            "answers the same images differently the second time",
        ),
    ],
    ids=["range of the batch", "random numbers"],
)
def test_an_onnx_file_that_only_onnx_runtime_runs_must_answer_an_image_by_itself(
    tmp_path: Path, nodes: list[NodeProto], message: str
) -> None:
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(75, 2)).astype(np.float32), "w")
    rest = [helper.make_node("Flatten", ["pixels"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    network = onnx_classifier(tmp_path / "c.onnx", [*nodes, *rest], weight)
    assert network.without_gradients
    pictures = np.random.default_rng(1).random((8, 3, 5, 5), dtype=np.float32)
    pictures[:, 0, 0, :2] = 0, 1  # all of one range, which tells nothing of their neighbours'
    with pytest.raises(DefendError, match=message):
        check_network(network, pictures, tensorrt=False)


def test_an_onnx_file_is_looked_at_with_its_own_numbers(tmp_path: Path) -> None:
    """Numbers that are equal everywhere, such as limits and zeros, are not moved: the graph is served as it is."""
    weight = np.random.default_rng(0).normal(size=(75, 2)).astype(np.float32)
    constants = {"w": weight, "b": np.zeros(2, np.float32), "low": np.float32(0), "high": np.float32(0.5)}
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["pixels"]),
        helper.make_node("Flatten", ["pixels"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    network = onnx_classifier(tmp_path / "c.onnx", nodes, *tensors)
    assert not network.without_gradients
    assert "MFLOPs" in check_network(network, np.random.default_rng(1).random((8, 3, 5, 5), dtype=np.float32))
