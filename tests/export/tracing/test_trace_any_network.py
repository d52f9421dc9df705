"""Networks that people have, written as ONNX by whom can: answers and gradients are torch's."""

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from tests.export.any_networks import FALLBACKS, LARGE_NETWORKS, LAYERS, NETWORKS, SHAPE, shape_of
from tests.export.stage_runs import images, operators, session
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_export.graph.builder import PRODUCER
from s2ap_export.graph.scopes import rename_scope
from s2ap_export.hardening.unfit import check_fit
from s2ap_export.tracing.torch_exporter import WRITER
from s2ap_export.tracing.trace import frozen, trace_classifier
from s2ap_train.models import fold_batch_norm
from s2ap_train.onnx_graphs import torch_stage


def network_of(make: object, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    """A network in evaluation mode with random weights, none of them zero."""
    torch.manual_seed(0)
    network = make().train()  # type: ignore[operator]
    for parameter in network.parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            parameter.data += 0.1 * torch.randn_like(parameter)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of the images
    network(torch.from_numpy(images(8, shape)))
    return frozen(network)


def assert_written(network: nn.Module, writer: str, shape: tuple[int, int, int] = SHAPE) -> ModelProto:
    """The stage of a network, its answers in batches of several sizes and its gradient compared with torch's."""
    stage = trace_classifier(fold_batch_norm(network), shape, "classifier")
    assert stage.producer_name == writer
    onnx.checker.check_model(stage, full_check=True)
    assert [(o.domain, o.version) for o in stage.opset_import] == [("", 20)]
    assert all(name.startswith("classifier/") for node in stage.graph.node for name in (node.name, *node.output[:-1]))
    x = images(5, shape)
    expected = network(torch.from_numpy(x)).log_softmax(1).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-4  # it tells images apart
    runner = session(stage)
    for size in (1, 2, 5):
        found = np.concatenate([runner.run(None, {"image": x[i : i + size]})[0] for i in range(0, 5, size)])
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    exact, double = network.double(), torch.from_numpy(x[:2]).double()
    twin = torch_stage(stage, dtype=torch.float64)
    wanted = gradient(lambda z: exact(z).log_softmax(1), double)
    np.testing.assert_allclose(gradient(lambda z: twin(z)[0], double), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    return stage


def gradient(function: object, x: Tensor) -> np.ndarray:
    z = x.clone().requires_grad_()
    (function(z)[:, 0] - function(z)[:, 1]).sum().backward()  # type: ignore[operator]
    return z.grad.numpy()


@pytest.mark.parametrize("name", LAYERS)
def test_usual_layers_are_written_by_our_own_trace(name: str) -> None:
    assert_written(network_of(LAYERS[name]), PRODUCER)


@pytest.mark.parametrize("name", FALLBACKS)
def test_torch_writes_the_layers_that_our_own_trace_does_not_know(name: str) -> None:
    check_fit(assert_written(network_of(FALLBACKS[name]), WRITER))  # TensorRT takes it


@pytest.mark.parametrize("name", NETWORKS)
def test_small_networks_of_torchvision_are_written(name: str) -> None:
    assert_written(network_of(NETWORKS[name]), PRODUCER)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_NETWORKS)
def test_every_kind_of_torchvision_network_is_written(name: str) -> None:
    by_torch = {"convnext", "vit", "shufflenet", "swin"}
    network = network_of(LARGE_NETWORKS[name], shape_of(name))
    assert_written(network, WRITER if name in by_torch else PRODUCER, shape_of(name))


def test_a_stage_that_torch_wrote_can_be_given_another_scope() -> None:
    stage = trace_classifier(network_of(FALLBACKS["padding"]), SHAPE, "trained_3")
    renamed = rename_scope(stage, "member_000")
    (expected,), (found,) = (session(one).run(None, {"image": images(2, SHAPE)}) for one in (stage, renamed))
    np.testing.assert_array_equal(found, expected)
    assert b"trained_3" not in renamed.SerializeToString()
    assert operators(renamed) >= {"Conv", "Pad"}


class Does(nn.Module):
    """A convolution and whatever else is done to its six means."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.convolution, self.function = nn.Conv2d(3, 6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.convolution(x).mean((2, 3)))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x - x.mean(0), "a sum over the batch: a verdict may depend on one image only"),
        (lambda x: x.reshape(int(x.shape[0]), 6), r"it fixes the number of images, 3 .* take x.shape\[0\] as it is"),
        (lambda x: x * 2 if x.mean() > 0 else x, "takes a branch, a size or a number from the values of an image"),
        (lambda x: x + torch.rand_like(x), r"takes random numbers in evaluation mode \(operator RandomUniformLike\)"),
        (lambda x: x.median(1, keepdim=True).values * x, "No ONNX function found .* operator aten.median.dim; rewrite"),
    ],
    ids=["mean over the batch", "fixed batch", "branch", "random numbers", "unknown operator"],
)
def test_what_neither_can_write_is_refused_with_the_true_reason(function: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        trace_classifier(Does(function).eval(), SHAPE, "classifier")
    assert "\n" not in str(caught.value)
