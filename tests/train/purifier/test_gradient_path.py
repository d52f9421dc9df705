"""The gradients that an attacker can take past a purifier, for functions whose gradients are known by hand."""

from typing import get_args

import pytest
import torch
from tests.train.toy_scores import random_unet
from torch import Tensor

from s2ap_defend.stages import PURIFIER
from s2ap_export.tracing.trace import trace_purifier
from s2ap_train.onnx_graphs import torch_stage
from s2ap_train.purifier import Purification, hadamard_bank
from s2ap_train.purifier.gradient_path import GradientPath, pass_through, purified
from s2ap_train.purifier.variants import Variant, purification
from s2ap_train.twin import Twin

PATHS = get_args(GradientPath)
SHAPE = (1, 4, 4)
X = torch.tensor([[0.1, 0.4, 0.9]])


def squares(x: Tensor) -> Tensor:
    """Squares, held in [.04, .64]: the last one is clamped, the first one, too."""
    return x.square().clamp(0.04, 0.64)


def squares_straight_through(x: Tensor) -> Tensor:
    return pass_through(squares(x), x.square())


def squares_with_slope_three(x: Tensor) -> Tensor:
    return pass_through(squares(x), 3 * x)


SQUARES = Variant("squares", squares, squares_straight_through, squares_with_slope_three, work=0, depth=0)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("none", [1.0, 1.0, 1.0]),
        ("identity", [1.0, 1.0, 1.0]),
        ("exact", [0.0, 0.8, 0.0]),
        ("straight_through", [0.2, 0.8, 1.8]),
        ("surrogate", [3.0, 3.0, 3.0]),
    ],
)
def test_a_path_decides_the_gradient_and_nothing_else(path: GradientPath, expected: list[float]) -> None:
    x = X.clone().requires_grad_()
    y = SQUARES.purify(x, path)
    assert torch.equal(y, X if path == "none" else squares(X))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([expected]))


def test_without_a_purifier_no_path_changes_anything() -> None:
    for path in PATHS:
        x = X.clone().requires_grad_()
        y = purified(x, path, exact=lambda x: x, straight_through=lambda x: x, surrogate=lambda x: x)
        assert torch.equal(y, X)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones_like(X))


def test_the_identity_builds_no_graph_of_the_purifier() -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    y = purified(X, "identity", exact=lambda x: scale * x, straight_through=lambda x: x, surrogate=None)
    assert not y.requires_grad


def test_the_twin_of_a_file_has_the_gradients_of_its_purifier_on_every_path_but_the_j_free_one() -> None:
    config = Purification(sigma=0.2, radius=0.02, steps=2, rho=0.1, bank_size=2)
    net, bank = random_unet().float(), hadamard_bank(2, SHAPE, 0)
    stage = trace_purifier(net, bank, config, SHAPE, PURIFIER)
    twin = Twin(
        purifier=torch_stage(stage, "cpu"),
        clamp_free_purifier=torch_stage(stage, "cpu", straight_through=True),
        classifier=lambda x: (x,),
        members=(),
        test=None,  # type: ignore[arg-type]  # nothing is decided
        device=torch.device("cpu"),
    )
    variant = purification("ours", net, bank, config)
    found = {}
    for path in PATHS[:-1]:
        for purifier in (twin, variant):
            x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
            weight = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1))
            (found[path, purifier],) = torch.autograd.grad((weight * purifier.purify(x, path)).sum(), x)
        torch.testing.assert_close(found[path, twin], found[path, variant], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["exact", variant], found["straight_through", variant], rtol=1e-2)
    assert not torch.allclose(found["exact", variant], found["identity", variant], rtol=1e-2)
    with pytest.raises(ValueError, match="holds no J-free form"):
        twin.purify(x, "surrogate")
