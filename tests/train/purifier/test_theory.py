from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests.train.toy_scores import gaussian_average, log_density, mixture_score
from torch import Tensor

from s2ap_train.purifier import Purification, field, hadamard_bank, purify, trajectory

CENTRES = torch.tensor([[0.3, 0.4], [0.6, 0.7], [0.5, 0.2]], dtype=torch.float64).reshape(3, 1, 1, 2)
SPREAD = 0.3
NET = mixture_score(CENTRES, SPREAD)
POINTS = torch.tensor([[0.35, 0.5], [0.55, 0.45], [0.7, 0.3]], dtype=torch.float64).reshape(3, 1, 1, 2)

FAR_APART = torch.tensor([[0.2, 0.3, 0.25, 0.3], [0.8, 0.7, 0.75, 0.6]], dtype=torch.float64).reshape(2, 1, 2, 2)
BESIDE = torch.tensor([[0.08, -0.1, 0.12, 0.05]], dtype=torch.float64).reshape(1, 1, 2, 2)
DISTURBED = FAR_APART + torch.cat([BESIDE, -BESIDE])


def curvature(points: Tensor, sigma: float) -> Tensor:
    """2 Lap log p_sigma + ||grad log p_sigma||^2 [B], by automatic differentiation of the log density."""

    def one(point: Tensor) -> Tensor:
        def density(flat: Tensor) -> Tensor:
            return log_density(flat.reshape(1, *point.shape), CENTRES, SPREAD, sigma)[0]

        flat = point.flatten()
        return (
            2 * torch.func.jacrev(torch.func.grad(density))(flat).trace()
            + torch.func.grad(density)(flat).square().sum()
        )

    return torch.func.vmap(one)(points)


def test_tweedie_the_denoiser_is_the_noisy_image_plus_sigma_squared_times_the_score() -> None:
    y, sigma = POINTS.clone().requires_grad_(), 0.4
    (score,) = torch.autograd.grad(log_density(y, CENTRES, SPREAD, sigma).sum(), y)
    denoised = y - sigma * NET(y, sigma)
    torch.testing.assert_close(denoised, y + sigma**2 * score, rtol=0, atol=1e-14)


def test_tweedie_the_denoiser_is_the_mean_of_clean_images_given_the_noisy_one() -> None:
    # E[x | y] by summing over e: y = x + sigma e, so x is drawn from p and weighted by N(y; x, sigma^2)
    y, sigma = POINTS, 0.6
    nodes, weights = gaussian_average((1, 1, 2), 40)
    clean = (CENTRES[:, None] + SPREAD * nodes).flatten(0, 1)  # [3 * 1600, 1, 1, 2]
    likelihood = torch.exp(-(y[:, None] - clean).flatten(2).square().sum(dim=2) / (2 * sigma**2)) * weights.repeat(3)
    mean = (likelihood[:, :, None, None, None] * clean).sum(dim=1) / likelihood.sum(dim=1)[:, None, None, None]
    torch.testing.assert_close(y - sigma * NET(y, sigma), mean, rtol=0, atol=1e-10)


def test_with_gaussian_noise_the_error_is_exactly_the_curvature_at_the_noisy_image() -> None:
    # Stein: E = sigma^2 d + sigma^4 E[2 Lap log p_sigma + ||grad log p_sigma||^2] at x + sigma e, with no remainder
    sigma = 0.3
    nodes, weights = gaussian_average((1, 1, 2), 16)
    error = torch.stack([field(NET, POINTS, sigma, e[None], "j_free")[1] for e in nodes])  # [256, B]
    curvatures = torch.stack([curvature(POINTS + sigma * e, sigma) for e in nodes])
    expected = 2 * sigma**2 + sigma**4 * (weights @ curvatures)
    torch.testing.assert_close(weights @ error, expected, rtol=1e-10, atol=0)


def test_with_the_complete_bank_the_error_is_the_curvature_at_the_image_up_to_sigma_to_the_sixth() -> None:
    # all four sign patterns of two pixels: their moments are the normal ones up to the third
    complete = hadamard_bank(4, (1, 1, 2), 0).double()

    def remainder(sigma: float) -> Tensor:
        error = field(NET, POINTS, sigma, complete, "full")[1]
        return error - 2 * sigma**2 - sigma**4 * curvature(POINTS, 0.0)

    ratio = remainder(0.02) / remainder(0.01)  # 2^6, corrected by O((sigma / SPREAD)^2) = O(0.004)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 64), rtol=0.02, atol=0)


@pytest.mark.parametrize(("mode", "sigmas"), [("full", (0.5, 0.4, 0.3, 0.2, 0.15)), ("j_free", (0.5, 0.2, 0.15, 0.1))])
def test_purified_images_come_to_the_nearest_mode_as_sigma_shrinks(mode: str, sigmas: tuple[float, ...]) -> None:
    # the centres are the modes: they are .93 apart, which is 18 times their spread
    net = mixture_score(FAR_APART, 0.05)
    config = Purification(radius=1.0, steps=200, step_size=0.5, rho=0.0, mode=mode, bank_size=8)  # type: ignore[arg-type]
    bank = hadamard_bank(8, (1, 2, 2), 0).double()
    distances = []
    for sigma in sigmas:
        purified, _ = purify(net, DISTURBED, bank, replace(config, sigma=sigma))
        to_both = (purified[:, None] - FAR_APART[None]).flatten(2).norm(dim=2)  # [image, mode]
        assert (sigma > 0.3) or torch.equal(to_both.argmin(dim=1), torch.tensor([0, 1]))
        distances.append(to_both.diagonal())
    disturbance = BESIDE.norm()
    for wider, narrower in pairwise(distances):
        assert (narrower < wider).all()
    assert (distances[0] > disturbance).all()  # with much noise the modes are one, between them
    assert (distances[-1] < 1e-3 * disturbance).all()


@pytest.mark.parametrize("mode", ["full", "j_free"])
def test_the_error_falls_with_every_step_of_plain_descent(mode: str) -> None:
    # near one centre E / 2 has the curvature (sigma^2 / (sigma^2 + spread^2))^2 < 1: a step below 2 descends
    net = mixture_score(FAR_APART, 0.05)
    config = Purification(sigma=0.1, radius=0.3, steps=6, step_size=0.5, rho=0.0, mode=mode, bank_size=8)  # type: ignore[arg-type]
    bank = hadamard_bank(8, (1, 2, 2), 0).double()
    records = trajectory(net, DISTURBED, bank, config)
    errors = torch.stack([records[0].error_before, *(record.error for record in records)])
    assert (errors.diff(dim=0) < 0).all()
    for before, after in pairwise(records):
        assert torch.equal(after.error_before, before.error)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_trajectory_is_that_of_the_purifier_and_stays_within_the_radius(norm: str) -> None:
    net = mixture_score(FAR_APART, 0.05)
    config = Purification(sigma=(0.3, 0.2, 0.1), radius=0.08, rho=0.05, norm=norm, bank_size=8)  # type: ignore[arg-type]
    bank = hadamard_bank(8, (1, 2, 2), 0).double()
    records = trajectory(net, DISTURBED, bank, config)
    moved = (purify(net, DISTURBED, bank, config)[0] - DISTURBED).flatten(1)
    assert [record.sigma for record in records] == [0.3, 0.2, 0.1]
    assert torch.equal(records[-1].moved_linf, moved.abs().amax(dim=1))
    torch.testing.assert_close(records[-1].moved_l2, moved.norm(dim=1), rtol=1e-15, atol=0)
    lengths = torch.stack([record.moved_linf if norm == "linf" else record.moved_l2 for record in records])
    assert (lengths <= 0.08 * (1 + 1e-12)).all()
    assert (lengths[-1] > 0.08 * (1 - 1e-9)).all()  # reached, but for the 1e-12 under the root of a norm
    for record in records:
        assert record.moved_l2.shape == record.error.shape == (2,)


def test_the_errors_of_a_trajectory_are_at_the_sigma_of_their_step() -> None:
    net = mixture_score(FAR_APART, 0.05)
    config = Purification(sigma=(0.3, 0.1), steps=2, rho=0.05, bank_size=8)
    bank = hadamard_bank(8, (1, 2, 2), 0).double()
    first, last = trajectory(net, DISTURBED, bank, config)
    purified, _ = purify(net, DISTURBED, bank, config)
    assert torch.equal(first.error_before, field(net, DISTURBED, 0.3, bank, "full")[1])
    assert torch.equal(last.error, field(net, purified, 0.1, bank, "full")[1])


def test_sharpness_aware_descent_is_plain_descent_plus_rho_times_the_curvature_along_the_gradient() -> None:
    # z(rho) = z(0) - eta rho H g / ||g|| + O(rho^2), H the Hessian of E / 2: the remainder falls fourfold with rho / 2
    bank = hadamard_bank(4, (1, 1, 2), 0).double()
    plain = Purification(sigma=0.2, radius=1.0, steps=1, step_size=0.7, rho=0.0)

    def half_gradient(z: Tensor) -> Tensor:
        return field(NET, z, 0.2, bank, "full")[0]

    gradient, hessian_times = torch.func.vjp(half_gradient, POINTS)  # a Hessian is its own transpose
    (bent,) = hessian_times(gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None])

    def remainder(rho: float) -> Tensor:
        moved = purify(NET, POINTS, bank, replace(plain, rho=rho))[0] - purify(NET, POINTS, bank, plain)[0]
        return (moved + 0.7 * rho * bent).flatten(1).norm(dim=1)

    ratio = remainder(2e-3) / remainder(1e-3)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4), rtol=0.02, atol=0)  # corrected by O(rho / SPREAD)
    assert (0.7 * 1e-3 * bent.flatten(1).norm(dim=1) > 10 * remainder(1e-3)).all()  # the first order is what is seen
