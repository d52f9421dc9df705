import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_train.purifier import Purification, UNet, field, hadamard_bank, purify
from s2ap_train.purifier.purify import descend

SHAPE = (1, 4, 4)
CONFIG = Purification(sigma=0.2, radius=0.3, steps=3, step_size=0.7, rho=0.2, bank_size=4)


@pytest.fixture(scope="module")
def net() -> UNet:
    """A score model with random weights everywhere, also where training starts at zero."""
    model = UNet(1, 8, (1, 2), seed=1).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bank(size: int = 4) -> Tensor:
    return hadamard_bank(size, SHAPE, 0).double()


def expected_error(net: Callable[[Tensor, float], Tensor], z: Tensor, sigma: float, directions: Tensor) -> Tensor:
    """E as the paper writes it, one direction at a time: mean of ||D(z + sigma e) - z||^2, D(y) = y - sigma n(y)."""
    errors = [z + sigma * e - sigma * net(z + sigma * e, sigma) - z for e in directions]
    return torch.stack([r.square().sum(dim=(1, 2, 3)) for r in errors]).mean(dim=0)


def test_the_half_gradient_is_half_of_autograd_of_the_expected_reconstruction_error(net: UNet) -> None:
    z = images(3).requires_grad_()
    error = expected_error(net, z, 0.2, bank())
    (gradient,) = torch.autograd.grad(error.sum(), z)
    half, returned = field(net, z.detach(), 0.2, bank(), "full")
    torch.testing.assert_close(half, gradient / 2, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(returned, error.detach(), rtol=1e-10, atol=1e-12)


def test_the_j_free_field_is_the_smoothed_mean_shift(net: UNet) -> None:
    z = images(3)
    shift = torch.stack([0.2 * net(z + 0.2 * e, 0.2) for e in bank()]).mean(dim=0)
    half, error = field(net, z, 0.2, bank(), "j_free")
    torch.testing.assert_close(half, shift, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(error, expected_error(net, z, 0.2, bank()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("mode", ["full", "j_free"])
def test_the_whole_purifier_can_be_differentiated_again(net: UNet, mode: str, reuse: bool) -> None:
    # small steps in the middle of the box, so that no clamp is active and central differences apply
    config = replace(CONFIG, mode=mode, reuse_ascent=reuse, step_size=0.01, rho=0.05, steps=2)
    x = 0.4 + 0.2 * images(2)
    weight = images(2, seed=5)
    direction = images(2, seed=6) - 0.5

    def value(t: float) -> Tensor:
        return (weight * purify(net, x + t * direction, bank(), config)[0]).sum()

    inputs = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((weight * purify(net, inputs, bank(), config)[0]).sum(), inputs)
    h = 1e-4
    difference = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)  # fourth order
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-8)
    straight = float((weight * direction).sum())
    assert abs(float(difference) - straight) > 1e-4 * abs(straight)  # the purifier's own Jacobian is in it


def test_the_ascent_before_each_step_has_length_rho_for_every_sample() -> None:
    asked: list[Tensor] = []

    def steep_for_the_first(z: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(z)
        scale = torch.tensor([1e3, 1.0, 1e-3], dtype=z.dtype)[:, None, None, None]
        return scale * (z - 0.3), z.flatten(1).sum(dim=1)

    descend(steep_for_the_first, images(3), replace(CONFIG, steps=1, rho=0.25))
    moved = (asked[1] - asked[0]).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, torch.full((3,), 0.25, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({"rho": 0.0}, 3),
        ({"rho": 0.2}, 6),
        ({"rho": 0.2, "reuse_ascent": True}, 4),
        ({"reuse_ascent": True, "rho": 0.0}, 3),
    ],
)
def test_three_steps_ask_the_field_as_often_as_the_cost_table_says(changes: dict[str, float], calls: int) -> None:
    asked = []

    def constant(z: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(z)
        return torch.ones_like(z), z.flatten(1).sum(dim=1)

    descend(constant, images(1), replace(CONFIG, **changes))  # type: ignore[arg-type]
    assert len(asked) == calls


def test_a_zero_gradient_moves_nothing_and_gives_no_nan() -> None:
    x = images(2)
    z, error = descend(lambda z: (torch.zeros_like(z), torch.zeros(len(z))), x, CONFIG)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-15)
    assert not error.isnan().any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_result_stays_in_the_box_and_in_the_ball_about_the_input(net: UNet, norm: str) -> None:
    x = images(8)
    config = replace(CONFIG, norm=norm, radius=0.1, step_size=50.0)
    z, _ = purify(net, x, bank(), config)
    moved = (z - x).flatten(1)
    length = moved.abs().amax(dim=1) if norm == "linf" else moved.norm(dim=1)
    assert z.min() >= 0
    assert z.max() <= 1
    assert length.max() <= 0.1 * (1 + 1e-9)
    assert length.max() > 0.09  # the ball was reached, so it was tested


@pytest.mark.parametrize("mode", ["full", "j_free"])
def test_an_image_is_purified_the_same_alone_and_in_a_batch(net: UNet, mode: str) -> None:
    x = images(5)
    config = replace(CONFIG, mode=mode)
    together, error = purify(net, x, bank(), config)
    for i in range(5):
        alone, its_error = purify(net, x[i : i + 1], bank(), config)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(its_error[0], error[i], rtol=1e-9, atol=1e-12)


def mixture_score(centres: Tensor, spread: float) -> Callable[[Tensor, float], Tensor]:
    """Exact noise prediction for a mixture of equal Gaussians N(centre, spread^2 I) of pixels."""

    def net(y: Tensor, sigma: float) -> Tensor:
        variance = spread**2 + sigma**2
        to_centres = centres[None] - y[:, None]  # [B, centres, C, H, W]
        share = torch.softmax(-to_centres.square().sum(dim=(2, 3, 4)) / (2 * variance), dim=1)
        score = (share[:, :, None, None, None] * to_centres).sum(dim=1) / variance
        return -sigma * score  # Tweedie: D(y) = y + sigma^2 score = y - sigma n

    return net


def test_tweedie_on_a_gaussian_mixture_the_denoiser_is_the_posterior_mean() -> None:
    # one pixel, centres 0 and 1 of no width, sigma .5: at y = .5 + t the posterior odds are exp(t / sigma^2)
    net = mixture_score(torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1), 0.0)
    t = 0.1
    denoised = 0.5 + t - 0.5 * float(net(torch.full((1, 1, 1, 1), 0.5 + t, dtype=torch.float64), 0.5))
    assert denoised == pytest.approx(1 / (1 + math.exp(-t / 0.25)))


@pytest.mark.parametrize("mode", ["full", "j_free"])
@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_on_a_gaussian_mixture_purification_moves_to_the_nearest_centre(mode: str, rho: float) -> None:
    centres = torch.stack([torch.full(SHAPE, 0.2), torch.full(SHAPE, 0.8)]).double()
    net = mixture_score(centres, 0.05)
    x = centres + 0.1 * (2 * images(2, seed=3) - 1)
    config = Purification(sigma=0.1, radius=0.3, steps=20, step_size=0.5, rho=rho, mode=mode)
    z, error = purify(net, x, bank(), config)
    assert (z - centres).abs().max() < (0.02 if rho == 0 else rho)
    assert (z - centres).norm() < 0.3 * (x - centres).norm()
    assert (error < expected_error(net, x, 0.1, bank())).all()


def test_the_bank_is_antithetic_and_its_first_half_orthogonal() -> None:
    directions = hadamard_bank(8, (1, 8, 8), seed=3)
    assert directions.shape == (8, 1, 8, 8)
    assert directions.dtype == torch.float32
    assert set(directions.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(directions[4:], -directions[:4])
    half = directions[:4].flatten(1)
    assert torch.equal(half @ half.T, 64 * torch.eye(4))


def test_the_bank_depends_on_its_seed_alone() -> None:
    assert torch.equal(hadamard_bank(4, (3, 8, 8), 1), hadamard_bank(4, (3, 8, 8), 1))
    assert not torch.equal(hadamard_bank(4, (3, 8, 8), 1), hadamard_bank(4, (3, 8, 8), 2))


@pytest.mark.parametrize("size", [0, 1, 3, 258])
def test_a_bank_of_odd_or_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="even size of 2 to 128"):
        hadamard_bank(size, (1, 8, 8), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.0}, "sigma and step_size are above 0"),
        ({"rho": -0.1}, "radius and rho at least 0"),
        ({"steps": 0}, "steps at least 1"),
        ({"mode": "jfree"}, "full or j_free"),
        ({"norm": "l1"}, "linf or l2"),
        ({"bank_size": 3}, "bank_size must be even"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Purification(**changes)  # type: ignore[arg-type]
