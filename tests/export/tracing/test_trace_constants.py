"""Factors and sums for each channel are merged into one node; the values are torch's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.export.stage_runs import images, operators, run
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_export.tracing.trace import trace_classifier, trace_images

SHAPE = (3, 8, 8)
A, B, C = (
    torch.tensor(values).reshape(1, 3, 1, 1) for values in ([2.0, 3.0, 4.0], [10.0, 20.0, 30.0], [0.1, 0.2, 0.3])
)


def group_norm() -> nn.Module:
    norm = nn.GroupNorm(1, 3).eval().requires_grad_(False)
    norm.weight.copy_(A.flatten())
    norm.bias.copy_(B.flatten())
    return norm


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3).eval().requires_grad_(False)
    norm.running_mean.copy_(C.flatten())
    norm.weight.copy_(A.flatten())
    norm.bias.copy_(B.flatten())
    return norm


def used_twice(x: Tensor) -> Tensor:
    product = x * A
    return (product + B) * product


GROUP, BATCH = group_norm(), batch_norm()
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "x a + b + c": lambda x: x * A + B + C,
    "x a + b + b": lambda x: x * A + B + B,
    "(x a + b) c": lambda x: (x * A + B) * C,
    "(x a + b) c + b": lambda x: (x * A + B) * C + B,
    "x a c + b": lambda x: x * A * C + B,
    "x a - b + c": lambda x: x * A - B + C,
    "c + (b + x a)": lambda x: C + (B + x * A),
    "product used twice": used_twice,
    "product with two sums": lambda x: (x * A + B) * (x * A + C),
    "group norm + c": lambda x: GROUP(x) + C,
    "batch norm + c": lambda x: BATCH(x) + C,
    "batch norm of a batch norm": lambda x: BATCH(BATCH(x)) + C,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_factor_and_no_sum_is_lost_where_they_are_merged(name: str) -> None:
    function, x = FUNCTIONS[name], images(5, SHAPE)
    expected = function(torch.from_numpy(x)).numpy()
    (found,) = run(trace_images(function, SHAPE), x)
    # at most six roundings of 2 ** -24 each, relative to the largest value on the way: the result's here, or 30
    np.testing.assert_allclose(found, expected, rtol=0, atol=6 * 2.0**-24 * max(30.0, float(np.abs(expected).max())))


def test_a_factor_and_one_sum_after_it_are_one_node() -> None:
    assert operators(trace_images(lambda x: x * A + B, SHAPE)) == {"BatchNormalization"}
    assert operators(trace_images(lambda x: x * A * C + B, SHAPE)) == {"BatchNormalization"}
    assert operators(trace_images(lambda x: x * A + B + C, SHAPE)) == {"BatchNormalization", "Add"}


class PerChannel(nn.Module):
    """A batch normalisation that nothing can fold, and a parameter for each channel after it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = batch_norm()
        self.embedding = nn.Parameter(C.clone())
        self.last = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.norm(x) + self.embedding).flatten(1))


def test_a_classifier_keeps_the_shift_of_a_normalisation_that_a_parameter_follows() -> None:
    torch.manual_seed(0)
    network, x = PerChannel().eval().requires_grad_(False), images(5, SHAPE)
    expected = network(torch.from_numpy(x)).log_softmax(1).numpy()
    (found,) = run(trace_classifier(network, SHAPE, "classifier"), x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm2d(3, track_running_stats=False), r"batch normalisation .* \(BatchNorm2d\(track_running_stats=F"),
        (nn.BatchNorm2d(3, affine=False, track_running_stats=False), "it reads the other images of the batch"),
    ],
    ids=str,
)
def test_normalisations_by_the_statistics_of_the_batch_are_named_and_refused(layer: nn.Module, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        trace_classifier(nn.Sequential(layer, nn.Flatten(), nn.Linear(192, 4)), SHAPE, "classifier")


@pytest.mark.parametrize("affine", [False, True])
def test_an_instance_normalisation_is_exported_as_the_group_normalisation_that_it_is(affine: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.InstanceNorm2d(3, affine=affine), nn.Flatten(), nn.Linear(192, 4)).eval()
    x = images(5, SHAPE)
    (found,) = run(trace_classifier(network, SHAPE, "classifier"), x)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).log_softmax(1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
