import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tests.train.toy_scores import Net, mixture_score
from torch import Tensor

from s2ap_train.purifier import ScoreTraining, field, hadamard_bank, train_score_model
from s2ap_train.training import Run

SHAPE = (1, 8, 8)
SIZE = 4
PIXELS = math.prod(SHAPE)


def independent(seed: int) -> Tensor:
    return torch.randn(SIZE, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def antithetic(seed: int) -> Tensor:
    half = torch.randn(SIZE // 2, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([half, -half])


def hadamard(seed: int) -> Tensor:
    return hadamard_bank(SIZE, SHAPE, seed).double()


def images(seed: int) -> Tensor:
    return torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_gaussian(spread: float) -> Net:
    return mixture_score(torch.full((1, *SHAPE), 0.5, dtype=torch.float64), spread)


def mixture_in_every_pixel(y: Tensor, sigma: float) -> Tensor:
    """Noise prediction for independent pixels, each from .3 or .7 with spread .2."""
    variance = 0.2**2 + sigma**2
    share = torch.sigmoid((y - 0.5) * 0.4 / variance)  # of the centre .7
    return sigma * (y - 0.3 - 0.4 * share) / variance


@pytest.mark.parametrize("draw", [antithetic, hadamard])
@pytest.mark.parametrize("mode", ["full", "j_free"])
def test_on_gaussian_data_an_antithetic_bank_has_no_error(draw: Callable[[int], Tensor], mode: str) -> None:
    # the score is linear, so what is odd in e cancels, and nothing in the field is even but the field itself
    x, sigma, spread = images(0), 0.1, 0.2
    variance = sigma**2 + spread**2
    exact = (sigma**4 / variance**2 if mode == "full" else sigma**2 / variance) * (x - 0.5)
    found, _ = field(one_gaussian(spread), x, sigma, draw(1), mode)  # type: ignore[arg-type]
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-15)


@pytest.mark.parametrize("mode", ["full", "j_free"])
def test_on_gaussian_data_independent_directions_err_as_their_mean_does(mode: str) -> None:
    # error = factor * mean(e), so its squared length over factor^2 d / M is chi-squared / d, one for each bank
    x, sigma, spread, banks = images(0), 0.1, 0.2, 300
    variance = sigma**2 + spread**2
    exact = (sigma**4 / variance**2 if mode == "full" else sigma**2 / variance) * (x - 0.5)
    factor = sigma**3 * spread**2 / variance**2 if mode == "full" else sigma**3 / variance
    net = one_gaussian(spread)
    errors = [field(net, x, sigma, independent(seed), mode)[0] - exact for seed in range(banks)]  # type: ignore[arg-type]
    squared = torch.stack(errors)[:, 0].flatten(1).square().sum(dim=1)
    relative = float(squared.mean()) / (factor**2 * PIXELS / SIZE)
    assert relative == pytest.approx(1, abs=3 * math.sqrt(2 / (PIXELS * banks)))


@pytest.mark.parametrize(
    ("draw", "order"),
    [(independent, 3), (antithetic, 4), (hadamard, 6)],
)
def test_for_independent_pixels_signs_cancel_one_order_more(draw: Callable[[int], Tensor], order: int) -> None:
    # j_free field: sigma^2 times the mean score at x + sigma e. One-sided directions leave sigma^3 s' mean(e), pairs
    # sigma^4 s'' (mean(e^2) - 1) / 2, and signs, whose squares are 1, sigma^6 s'''' (mean(e^4) - 3) / 24.
    x = images(0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    weights = torch.from_numpy(weights / weights.sum())

    def error(sigma: float) -> Tensor:
        exact = sum(
            w * sigma * mixture_in_every_pixel(x + sigma * e, sigma) for w, e in zip(weights, nodes, strict=True)
        )
        found, _ = field(mixture_in_every_pixel, x, sigma, draw(1), "j_free")
        return (found - exact).flatten(1).norm(dim=1)

    ratio = error(0.02) / error(0.01)  # corrected by O(sigma / .2) = .1 one-sided, its square for pairs
    torch.testing.assert_close(ratio.log2(), torch.full_like(ratio, order), rtol=0, atol=0.1)


def test_on_a_trained_score_model_pairs_beat_independent_directions_and_signs_beat_pairs() -> None:
    # sigma .1, M 4, eight attacked-looking digits; the reference is the mean over 2000 normal directions and their
    # negatives. Measured: .318 +- .006, .044 +- .001, .035 +- .001; the reference errs by .044 sqrt(4 / 4000) = .001
    digits = (load_digits().images / 16).astype(np.float32).reshape(-1, *SHAPE)
    net = train_score_model(digits[:600], ScoreTraining(width=8, epochs=4, average_decay=0.9), run=Run(0)).net
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (8, *SHAPE), generator=generator) * 2 - 1
    x = (torch.from_numpy(digits[1000:1008]) + 0.15 * signs).clamp(0, 1)
    many = torch.randn(4, 500, *SHAPE, generator=generator)
    exact = torch.stack([field(net, x, 0.1, torch.cat([half, -half]), "j_free")[0] for half in many]).mean(dim=0)

    def errors(draw: Callable[[int], Tensor], banks: int = 60) -> Tensor:
        """Relative error of the field, mean over the images, for every bank."""
        found = torch.stack([field(net, x, 0.1, draw(seed).float(), "j_free")[0] for seed in range(banks)])
        return ((found - exact).flatten(2).norm(dim=2) / exact.flatten(1).norm(dim=1)).mean(dim=1)

    one_sided, pairs, hadamard_pairs = errors(independent), errors(antithetic), errors(hadamard)
    assert (one_sided - 4 * pairs).mean() > 3 * standard_error(one_sided - 4 * pairs)
    assert pairs.mean() - hadamard_pairs.mean() > 3 * math.hypot(standard_error(pairs), standard_error(hadamard_pairs))


def standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def test_the_bank_is_antithetic_and_its_first_half_orthogonal() -> None:
    directions = hadamard_bank(8, SHAPE, seed=3)
    assert directions.shape == (8, *SHAPE)
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
        hadamard_bank(size, SHAPE, 0)
