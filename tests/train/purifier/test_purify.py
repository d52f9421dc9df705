from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.train.toy_scores import random_unet
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_train.purifier import Purification, UNet, field, hadamard_bank, purify, trajectory
from s2ap_train.purifier.purify import descend
from s2ap_train.recipe import load_recipe

SHAPE = (1, 4, 4)
CONFIG = Purification(sigma=0.2, radius=0.3, steps=3, step_size=0.7, rho=0.2, bank_size=4)


@pytest.fixture(scope="module")
def net() -> UNet:
    return random_unet()


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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "j_free"},
        {"reuse_ascent": True},
        {"mode": "j_free", "reuse_ascent": True},
        {"rho": 0.0},
        {"sigma": (0.3, 0.1)},
        {"norm": "l2"},
        {"norm": "l2", "radius": 1e-4, "sigma": (0.3, 0.1)},  # on the sphere after every step
    ],
)
def test_the_whole_purifier_can_be_differentiated_again(net: UNet, changes: dict[str, Any]) -> None:
    # small steps in the middle of the box, so that no clamp is active and central differences apply
    config = replace(CONFIG, **{"step_size": 0.01, "rho": 0.05, "steps": 2} | changes)
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
    assert abs(float(difference) - straight) > 1e-6 * abs(straight)  # the purifier's own Jacobian is in it


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_straight_through_changes_no_value_and_lets_gradients_past_ball_and_box(net: UNet, norm: str) -> None:
    config = replace(CONFIG, norm=norm, steps=1, rho=0.0, radius=0.01)
    x = images(4).round(decimals=1).requires_grad_()  # some pixels are 0 or 1
    weight = images(4, seed=5)
    exact, _ = purify(net, x, bank(), config)
    passed, _ = purify(net, x, bank(), config, straight_through=True)
    free = x - config.step_size * field(net, x, 0.2, bank(), "full")[0]
    gradients = [torch.autograd.grad((weight * z).sum(), x)[0] for z in (exact, passed, free)]
    assert torch.equal(passed, exact)
    torch.testing.assert_close(gradients[1], gradients[2], rtol=1e-12, atol=1e-12)
    assert (gradients[0] - gradients[2]).abs().max() > 1e-3  # the clamps were active


def test_switched_off_the_images_come_back_with_no_error(net: UNet) -> None:
    for sigma in (0.2, ()):
        config = replace(CONFIG, sigma=sigma, steps=0)
        x = images(3)
        z, error = purify(net, x, bank(), config)
        assert torch.equal(z, x)
        assert torch.equal(error, torch.zeros(3, dtype=torch.float64))
        assert (config.off, config.sigmas, config.work, config.depth) == (True, (), 0, 0)
        assert trajectory(net, x, bank(), config) == ()


@pytest.mark.parametrize("reuse", [False, True])
def test_every_step_of_a_schedule_asks_at_its_own_sigma(reuse: bool) -> None:
    asked = []

    def field_at(z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        asked.append(sigma)
        return torch.ones_like(z), z.flatten(1).sum(dim=1)

    descend(field_at, images(1), replace(CONFIG, sigma=(0.3, 0.2, 0.1), reuse_ascent=reuse))
    assert asked == ([0.3, 0.3, 0.2, 0.1] if reuse else [0.3, 0.3, 0.2, 0.2, 0.1, 0.1])


def test_a_schedule_of_one_sigma_is_that_sigma(net: UNet) -> None:
    scheduled, error = purify(net, images(3), bank(), replace(CONFIG, sigma=(0.2, 0.2, 0.2)))
    constant, its_error = purify(net, images(3), bank(), CONFIG)
    assert torch.equal(scheduled, constant)
    assert torch.equal(error, its_error)


def test_the_ascent_before_each_step_has_length_rho_for_every_sample() -> None:
    asked: list[Tensor] = []

    def steep_for_the_first(z: Tensor, _: float) -> tuple[Tensor, Tensor]:
        asked.append(z)
        scale = torch.tensor([1e3, 1.0, 1e-3], dtype=z.dtype)[:, None, None, None]
        return scale * (z - 0.3), z.flatten(1).sum(dim=1)

    descend(steep_for_the_first, images(3), replace(CONFIG, steps=1, rho=0.25))
    moved = (asked[1] - asked[0]).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, torch.full((3,), 0.25, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("changes", "depth"),
    [
        ({}, 12),  # 4 K
        ({"reuse_ascent": True}, 8),  # 2 (K + 1)
        ({"rho": 0.0}, 6),  # 2 K
        ({"rho": 0.0, "reuse_ascent": True}, 6),
        ({"mode": "j_free"}, 6),  # 2 K
        ({"mode": "j_free", "rho": 0.0}, 3),  # K
    ],
)
def test_three_steps_cost_what_the_cost_table_says(net: UNet, changes: dict[str, Any], depth: int) -> None:
    forward, backward = 0, 0

    def count(*_: object) -> None:
        nonlocal backward
        backward += 1

    def counted(y: Tensor, sigma: float) -> Tensor:
        nonlocal forward
        forward += 1
        noise = net(y, sigma)
        if noise.requires_grad:
            noise.register_hook(count)
        return noise

    config = replace(CONFIG, **changes)
    purify(counted, images(1), bank(), config)
    assert (config.depth, config.work) == (depth, depth * 4)
    assert forward + (backward if config.mode == "full" else 0) == depth


def test_a_zero_gradient_moves_nothing_and_gives_no_nan() -> None:
    x = images(2)
    z, error = descend(lambda z, _: (torch.zeros_like(z), torch.zeros(len(z))), x, CONFIG)
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
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-15)
        torch.testing.assert_close(its_error[0], error[i], rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.0}, "sigma and step_size are above 0"),
        ({"sigma": (0.1, 0.0, 0.1)}, "sigma and step_size are above 0"),
        ({"sigma": (0.1, 0.2)}, "sigma is a schedule of 2 for 3 steps; give one sigma for each step"),
        ({"sigma": float("nan")}, "must be finite numbers"),
        ({"radius": float("inf")}, "must be finite numbers"),
        ({"rho": -0.1}, "radius and rho at least 0"),
        ({"steps": -1}, r"steps at least 0 \(0 is off\)"),
        ({"mode": "jfree"}, "full or j_free"),
        ({"norm": "l1"}, "linf or l2"),
        ({"bank_size": 3}, "bank_size must be even"),
        ({"bank_seed": -1}, "bank_seed must be at least 0, found -1"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Purification(**changes)  # type: ignore[arg-type]


def test_a_recipe_gives_one_sigma_or_a_schedule() -> None:
    schedule = load_recipe("digits", ("purifier.steps=3", "purifier.sigma=[0.3, 0.2, 0.1]")).purifier
    assert schedule.sigmas == (0.3, 0.2, 0.1)
    assert load_recipe("digits", ("purifier.steps=2", "purifier.sigma=1")).purifier.sigmas == (1.0, 1.0)
    assert load_recipe("digits", ("purifier.steps=0",)).purifier.off
    with pytest.raises(RecipeError, match=r"^recipe digits: purifier: sigma is a schedule of 2 for 3 steps"):
        load_recipe("digits", ("purifier.steps=3", "purifier.sigma=[0.3, 0.2]"))
