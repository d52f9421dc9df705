"""A stage that says something else than its network is not made into a file."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper
from tests.export.stage_runs import DIGITS, bank, images, run
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_export.hardening.parity import check_stage
from s2ap_export.hardening.precision import is_half, to_half
from s2ap_export.tracing.trace import trace_classifier, trace_images, trace_purifier
from s2ap_train.models import SmallCNN, fold_batch_norm
from s2ap_train.purifier import Purification, UNet, purify, variants

CONFIG = Purification(sigma=0.2, radius=0.3, steps=2, rho=0.2, bank_size=2)
Network = Callable[[Tensor], tuple[Tensor, ...]]


def purifier_of(net: UNet, config: Purification = CONFIG) -> tuple[ModelProto, Network]:
    """The stage and what it was made from."""
    return trace_purifier(net, bank(config), config, DIGITS), lambda x: purify(net, x, bank(config), config)


def classifier() -> tuple[ModelProto, Network]:
    network = SmallCNN(1, 10, (8, 8, 16)).eval().requires_grad_(False)
    stage = trace_classifier(fold_batch_norm(network), DIGITS, "classifier")
    return stage, lambda x: (network(x).log_softmax(dim=1),)


def with_another_operator(stage: ModelProto, before: str, after: str) -> ModelProto:
    """The first node of one kind becomes one of another."""
    wrong = ModelProto()
    wrong.CopyFrom(stage)
    next(node for node in wrong.graph.node if node.op_type == before).op_type = after
    return wrong


def with_larger_weights(stage: ModelProto, factor: float) -> ModelProto:
    """All kernels times a factor."""
    wrong = ModelProto()
    wrong.CopyFrom(stage)
    for tensor in wrong.graph.initializer:
        if len(tensor.dims) == 4:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name))
    return wrong


@pytest.mark.parametrize(
    "changes", [{}, {"mode": "j_free"}, {"norm": "l2"}, {"steps": 0}, {"sigma": (0.3, 0.1)}], ids=str
)
def test_purifiers_are_their_networks(changes: dict[str, object], flat_net: UNet, digits: np.ndarray) -> None:
    stage, network = purifier_of(flat_net, replace(CONFIG, **changes))  # type: ignore[arg-type]
    check_stage("purifier", stage, network, digits[:8])


def test_classifiers_and_other_purifiers_are_their_networks(trained_net: UNet, digits: np.ndarray) -> None:
    check_stage("classifier", *classifier(), digits[:8])
    variant = variants.one_step_denoise(trained_net, 0.2)
    check_stage("purifier", trace_images(variant.exact, DIGITS), lambda x: (variant.purify(x),), digits[:8])


@pytest.mark.parametrize(("before", "after"), [("Relu", "Abs"), ("MaxPool", "AveragePool")])
def test_a_wrong_operator_in_a_classifier_is_found(before: str, after: str) -> None:
    stage, network = classifier()
    wrong = with_another_operator(stage, before, after)
    if after == "AveragePool":
        for node in wrong.graph.node:
            kept = [a for a in node.attribute if node.op_type != after or a.name != "dilations"]
            del node.attribute[:]
            node.attribute.extend(kept)
    message = (
        r"^stage member_003: log_probabilities differs from the network's by \S+ on 8 fitting images, expected at "
    )
    with pytest.raises(RecipeError, match=message):
        check_stage("member_003", wrong, network, images(8))


@pytest.mark.parametrize(("before", "after"), [("Sub", "Add"), ("Sigmoid", "Tanh")])
def test_a_wrong_operator_in_a_purifier_is_found(before: str, after: str, flat_net: UNet, digits: np.ndarray) -> None:
    stage, network = purifier_of(flat_net)
    with pytest.raises(RecipeError, match=r"stage purifier: \w+ differs from the network's by .* fault of the export"):
        check_stage("purifier", with_another_operator(stage, before, after), network, digits[:8])


def test_weights_that_are_off_by_a_thousandth_are_found_and_by_a_rounding_are_not(
    trained_net: UNet, digits: np.ndarray
) -> None:
    for name, (stage, network) in {"classifier": classifier(), "purifier": purifier_of(trained_net)}.items():
        check_stage(name, with_larger_weights(stage, 1 + 2.0**-23), network, digits[:8])
        with pytest.raises(RecipeError, match=f"stage {name}: .* differs from the network's"):
            check_stage(name, with_larger_weights(stage, 1.001), network, digits[:8])


def test_a_purifier_whose_error_alone_is_wrong_is_found(flat_net: UNet, digits: np.ndarray) -> None:
    stage, network = purifier_of(flat_net)

    def doubled(x: Tensor) -> tuple[Tensor, ...]:
        purified, error = network(x)
        return purified, 1.001 * error

    with pytest.raises(RecipeError, match="stage purifier: reconstruction_error differs"):
        check_stage("purifier", stage, doubled, digits[:8])


class Counting(nn.Module):
    """Answers otherwise at every call: an export holds one of its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(x.flatten(1)) * self.calls


def test_a_network_that_keeps_a_state_is_refused() -> None:
    network = Counting().eval().requires_grad_(False)
    stage = trace_classifier(network, DIGITS, "classifier")
    network(torch.zeros(1, *DIGITS))
    with pytest.raises(RecipeError, match="whose forward method keeps a state or takes random numbers cannot be expor"):
        check_stage("classifier", stage, lambda x: (network(x).log_softmax(dim=1),), images(8))


def test_a_network_whose_training_diverged_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False)
    network[1].weight[0, 0] = torch.nan
    stage = trace_classifier(network, DIGITS, "classifier")
    with pytest.raises(RecipeError, match="the network itself gives log_probabilities that is not finite"):
        check_stage("classifier", stage, lambda x: (network(x).log_softmax(dim=1),), images(8))


@pytest.mark.parametrize("mode", ["full", "j_free"])
def test_half_precision_is_held_to_its_own_roundings(mode: str, trained_net: UNet, digits: np.ndarray) -> None:
    stage, network = purifier_of(trained_net, replace(CONFIG, mode=mode))  # type: ignore[arg-type]
    half = to_half(stage)
    assert is_half(half)
    assert not is_half(stage)
    check_stage("purifier", half, network, digits[:8])
    with pytest.raises(RecipeError, match=r"keep export\.precision at 'float32'"):
        check_stage("purifier", with_larger_weights(half, 1.2), network, digits[:8])


def overflowing(net: UNet) -> UNet:
    """The same function in float32: normalised layers may have weights of any scale. In float16 they end at 65504."""
    large = copy.deepcopy(net)
    for block in (*large.down_blocks, large.middle, *large.up_blocks):
        for parameter in block.convolution1.parameters():
            parameter.data *= 1e5
    return large


def test_activations_beyond_float16_are_refused_though_a_cpu_would_not_notice(
    trained_net: UNet, digits: np.ndarray
) -> None:
    stage, network = purifier_of(overflowing(trained_net))
    check_stage("purifier", stage, network, digits[:8])
    half = to_half(stage)
    assert all(np.isfinite(values).all() for values in run(half, digits[:8]))
    with pytest.raises(RecipeError, match="is not finite on 8 fitting images; an activation exceeds 65504"):
        check_stage("purifier", half, network, digits[:8])


def test_an_overflow_that_a_clamp_hides_is_refused_as_well() -> None:
    """Infinity, clamped, is a finite pixel, and a wrong one."""
    convolution = nn.Conv2d(1, 1, 3, padding=1, bias=False).requires_grad_(False)
    convolution.weight.zero_()[0, 0, 1, 1] = 6e4

    def function(x: Tensor) -> Tensor:
        return (convolution(4 * x) / 4.8e5).clamp(0, 1)  # x / 2

    half = to_half(trace_images(function, DIGITS))
    with pytest.raises(RecipeError, match=r"purified differs .* float16 is too coarse for it"):
        check_stage("purifier", half, lambda x: (function(x),), images(8))
