import math
from collections.abc import Callable

import pytest
import torch
from tests.train.toy_scores import mixture_score, random_unet
from torch import Tensor

from s2ap_defend.errors import DefendError, InputError, RecipeError
from s2ap_train.purifier import Purification, UNet, hadamard_bank, purify
from s2ap_train.purifier.baselines import AdamDescent, adam_purify, stratified_levels, uniform_levels
from s2ap_train.purifier.purify import Score
from s2ap_train.purifier.variants import (
    Variant,
    bit_depth,
    jpeg,
    likelihood_maximisation,
    noise_and_denoise,
    off,
    one_step_denoise,
    purification,
    score_opt,
)

SHAPE = (1, 4, 4)
CONFIG = Purification(sigma=0.2, radius=0.1, steps=2, rho=0.1, bank_size=4)
BANK = hadamard_bank(4, SHAPE, 0).double()
SPREAD = 0.2
GAUSSIAN = mixture_score(torch.full((1, *SHAPE), 0.5, dtype=torch.float64), SPREAD)
DETERMINISTIC: dict[str, Callable[[Score], Variant]] = {
    "off": lambda _: off(),
    "purification": lambda net: purification("ours", net, BANK, CONFIG),
    "one-step-denoise": lambda net: one_step_denoise(net, 0.2),
    "score-opt-style": lambda net: score_opt(net, SHAPE, steps=3, draws=2),
    "likelihood-maximisation-style": lambda net: likelihood_maximisation(net, SHAPE, radius=0.06, steps=3, draws=2),
    "bit-depth-3": lambda _: bit_depth(3),
    "jpeg-75": lambda _: jpeg(75),
}
ALL = DETERMINISTIC | {"noise-and-denoise": lambda net: noise_and_denoise(net, 0.2, 0)}


@pytest.fixture(scope="module")
def net() -> UNet:
    return random_unet()


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    inputs = x.clone().requires_grad_()
    return torch.autograd.grad((weight * function(inputs)).sum(), inputs)[0]


@pytest.mark.parametrize("kind", ALL)
def test_every_variant_returns_images_in_the_box_of_the_type_it_was_given(net: UNet, kind: str) -> None:
    purified = ALL[kind](net).purify(images(6))
    assert (purified.shape, purified.dtype) == ((6, *SHAPE), torch.float64)
    assert purified.min() >= 0
    assert purified.max() <= 1


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_all_three_functions_of_a_variant_have_the_same_values_every_time(net: UNet, kind: str) -> None:
    variant = DETERMINISTIC[kind](net)
    x = images(4)
    expected = variant.purify(x)
    for function in (variant.purify, variant.straight_through, variant.surrogate):
        assert torch.equal(function(x), expected)
    assert variant.stochastic is False
    assert (kind == "off") == torch.equal(expected, x)


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_neither_batch_nor_order_changes_what_happens_to_an_image(net: UNet, kind: str) -> None:
    variant = DETERMINISTIC[kind](net)
    x, order = images(5), torch.tensor([3, 0, 4, 1, 2])
    together = variant.purify(x)
    torch.testing.assert_close(variant.purify(x[order]), together[order], rtol=0, atol=1e-14)
    for i in range(5):
        torch.testing.assert_close(variant.purify(x[i : i + 1])[0], together[i], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", sorted(ALL.keys() - {"purification"}))
def test_the_surrogate_of_a_baseline_has_the_gradient_of_the_identity(net: UNet, kind: str) -> None:
    weight = images(3, seed=1)
    assert torch.equal(gradient(ALL[kind](net).surrogate, images(3), weight), weight)


def test_the_surrogate_of_the_purifier_has_the_gradient_of_the_j_free_one(net: UNet) -> None:
    variant = purification("ours", net, BANK, CONFIG)
    j_free = Purification(sigma=0.2, radius=0.1, steps=2, rho=0.1, bank_size=4, mode="j_free")
    x, weight = images(3), images(3, seed=1)
    found = gradient(variant.surrogate, x, weight)
    assert torch.equal(found, gradient(lambda z: purify(net, z, BANK, j_free)[0], x, weight))
    assert not torch.allclose(found, gradient(variant.purify, x, weight), rtol=1e-3)


def test_clamps_and_rounding_pass_gradients_where_they_have_none_themselves(net: UNet) -> None:
    x, weight = images(3), images(3, seed=1)
    assert gradient(bit_depth(2).purify, x, weight).abs().max() == 0
    assert torch.equal(gradient(bit_depth(2).straight_through, x, weight), weight)
    for variant in (jpeg(50).purify, jpeg(50).straight_through):
        assert torch.equal(gradient(variant, x, weight), weight)
    free = gradient(lambda z: z - 0.2 * net(z, 0.2), x, weight)
    denoise = one_step_denoise(net, 0.2)
    assert torch.equal(gradient(denoise.straight_through, x, weight), free)
    clamped = (denoise.purify(x) == 0) | (denoise.purify(x) == 1)
    assert clamped.any()
    assert not torch.allclose(gradient(denoise.purify, x, weight), free, rtol=1e-3)


def test_straight_through_lets_gradients_past_the_ball_of_unrolled_adam(net: UNet) -> None:
    # the first step is .05 long, so that the ball of .06 first holds pixels after the second, which has a gradient
    free = AdamDescent((0.2, 0.3), step_size=0.05)
    bounded = AdamDescent((0.2, 0.3), step_size=0.05, radius=0.06)
    x, weight, noise = 0.3 + 0.4 * images(3), images(3, seed=1), free.noise(SHAPE).double()
    expected = gradient(lambda z: adam_purify(net, z, noise, free), x, weight)
    passed = gradient(lambda z: adam_purify(net, z, noise, bounded, straight_through=True), x, weight)
    torch.testing.assert_close(passed, expected, rtol=1e-12, atol=1e-12)
    exact = gradient(lambda z: adam_purify(net, z, noise, bounded), x, weight)
    assert (exact - expected).abs().max() > 1e-3  # pixels were held


@pytest.mark.parametrize("kind", ["score-opt-style", "likelihood-maximisation-style", "one-step-denoise"])
def test_a_variant_asks_the_score_model_as_often_as_it_says(net: UNet, kind: str) -> None:
    asked = []

    def counted(y: Tensor, sigma: float) -> Tensor:
        asked.append(len(y))
        return net(y, sigma)  # type: ignore[no-any-return]

    variant = DETERMINISTIC[kind](counted)
    variant.purify(images(1))
    passes = 1 if kind == "one-step-denoise" else 2  # and back, for a gradient
    assert variant.depth == passes * len(asked)
    assert variant.work == passes * sum(asked)


def test_adam_is_that_of_torch_on_the_reconstruction_error_with_the_same_noise(net: UNet) -> None:
    config = AdamDescent(levels=(0.3, 0.1, 0.2), step_size=0.05, draws=2, seed=3)
    noise = config.noise(SHAPE).double()
    x = 0.3 + 0.4 * images(1)
    z = x.clone().requires_grad_()
    optimiser = torch.optim.Adam([z], lr=0.05, eps=0)
    for sigma, directions in zip(config.levels, noise, strict=True):
        optimiser.zero_grad()
        noisy = z + sigma * directions
        (noisy - sigma * net(noisy, sigma) - z).square().sum().backward()
        optimiser.step()
    # our floor under the root changes a step by 1e-16 / 2 v of itself, v > 1e-8 the mean squared gradient
    torch.testing.assert_close(adam_purify(net, x, noise, config), z.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("radius", [None, 0.06])
def test_the_gradient_through_unrolled_adam_is_the_finite_difference(net: UNet, radius: float | None) -> None:
    config = AdamDescent(levels=(0.3, 0.1, 0.2), step_size=0.05, radius=radius, draws=2, seed=3)
    noise = config.noise(SHAPE).double()
    x, weight, direction = 0.3 + 0.4 * images(1), images(1, seed=5), images(1, seed=6) - 0.5

    def value(t: float) -> float:
        return float((weight * adam_purify(net, x + t * direction, noise, config)).sum())

    h = 1e-4
    difference = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    found = float((gradient(lambda z: adam_purify(net, z, noise, config), x, weight) * direction).sum())
    assert found == pytest.approx(difference, rel=1e-7)
    straight = float((weight * direction).sum())
    assert abs(difference - straight) > 1e-3 * abs(straight)  # the unrolled steps are in it
    moved = (adam_purify(net, x, noise, config) - x).abs()
    assert radius is None or (0 < (moved < 0.059).sum() < moved.numel())  # the ball holds some pixels, not all


def test_adam_with_a_zero_field_moves_nothing_and_has_a_gradient() -> None:
    config = AdamDescent((0.2, 0.2), step_size=0.1)
    noise = torch.zeros(2, 1, *SHAPE, dtype=torch.float64)
    x = torch.full((2, *SHAPE), 0.5, dtype=torch.float64)  # the centre, where the score vanishes
    assert torch.equal(adam_purify(GAUSSIAN, x, noise, config), x)
    assert gradient(lambda z: adam_purify(GAUSSIAN, z, noise, config), x, x).isfinite().all()


def test_every_step_of_adam_has_its_own_noise_which_the_seed_decides() -> None:
    config = AdamDescent((0.2, 0.2, 0.2), step_size=0.1, draws=2)
    noise = config.noise(SHAPE)
    assert noise.shape == (3, 2, *SHAPE)
    assert len({tuple(row.tolist()) for row in noise.flatten(0, 1).flatten(1)}) == 6
    assert torch.equal(noise, config.noise(SHAPE))
    assert not torch.equal(noise, AdamDescent((0.2, 0.2, 0.2), step_size=0.1, draws=2, seed=1).noise(SHAPE))


def test_likelihood_maximisation_stays_in_its_ball_and_score_opt_knows_none(net: UNet) -> None:
    x = images(6)
    near = (likelihood_maximisation(net, SHAPE, radius=0.06).purify(x) - x).abs().max()
    far = (score_opt(net, SHAPE).purify(x) - x).abs().max()
    assert 0.05 < near <= 0.06 + 1e-15
    assert far > 0.1


def test_noise_levels_cover_their_range() -> None:
    uniform = uniform_levels(0.2, 0.3, 200, seed=0)
    assert 0.2 <= min(uniform) < 0.21
    assert 0.29 < max(uniform) <= 0.3
    strata = sorted(math.log(level / 0.05) / math.log(10) for level in stratified_levels(0.05, 0.5, 8, seed=0))
    assert [int(8 * place) for place in strata] == list(range(8))


def test_denoising_in_one_step_is_the_posterior_mean() -> None:
    x = 0.4 + 0.2 * images(3)
    share = SPREAD**2 / (SPREAD**2 + 0.1**2)
    torch.testing.assert_close(one_step_denoise(GAUSSIAN, 0.1).purify(x), 0.5 + share * (x - 0.5), rtol=0, atol=1e-15)


def test_noise_before_denoising_is_fresh_in_every_call_and_touches_no_other_generator() -> None:
    x = 0.4 + 0.2 * images(1)
    variant, again = noise_and_denoise(GAUSSIAN, 0.05, 7), noise_and_denoise(GAUSSIAN, 0.05, 7)
    before = torch.get_rng_state()
    first, second = variant.purify(x), variant.purify(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    assert torch.equal(first, again.purify(x))
    assert (variant.stochastic, variant.traceable) == (True, False)
    # D(x + sigma e) = .5 + share (x + sigma e - .5): normal about the denoised image with deviation share sigma
    share = SPREAD**2 / (SPREAD**2 + 0.05**2)
    calls = 200
    deviations = torch.stack([variant.purify(x) for _ in range(calls)]) - (0.5 + share * (x - 0.5))
    scaled = deviations / (share * 0.05)
    count = calls * math.prod(SHAPE)
    assert float(scaled.mean()) == pytest.approx(0, abs=3 / math.sqrt(count))
    assert float(scaled.square().mean()) == pytest.approx(1, abs=3 * math.sqrt(2 / count))


def test_bit_depth_rounds_to_the_nearest_value() -> None:
    x = torch.tensor([0.0, 0.16, 0.17, 0.4, 0.6, 1.0], dtype=torch.float64).reshape(1, 1, 2, 3)
    expected = torch.tensor([0, 0, 1, 1, 2, 3], dtype=torch.float64).reshape(1, 1, 2, 3) / 3
    assert torch.equal(bit_depth(2).purify(x), expected)


def test_jpeg_keeps_a_flat_image_and_loses_more_at_lower_quality() -> None:
    grey = torch.full((2, 1, 8, 8), 128 / 255)
    assert torch.equal(jpeg(90).purify(grey), grey)
    colour = torch.tensor([200, 50, 20]).reshape(1, 3, 1, 1) / 255 * torch.ones(1, 3, 16, 16)
    assert (jpeg(90).purify(colour) - colour).abs().max() < 2.5 / 255  # rounding to YCbCr and back
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    lost = [float((jpeg(quality).purify(noise) - noise).square().mean()) for quality in (95, 50, 10)]
    assert lost == sorted(lost)
    assert lost[0] < lost[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bit_depth(0), "bits must be 1 to 8, found 0"),
        (lambda: jpeg(101), "quality must be 1 to 100, found 101"),
        (lambda: one_step_denoise(GAUSSIAN, 0.0), "sigma must be above 0"),
        (lambda: noise_and_denoise(GAUSSIAN, math.nan, 0), "sigma must be above 0"),
        (lambda: score_opt(GAUSSIAN, SHAPE, sigma=0.05, spread=0.2), "levels, step_size and radius above 0"),
        (lambda: score_opt(GAUSSIAN, SHAPE, steps=0), "at least one step"),
        (lambda: score_opt(GAUSSIAN, SHAPE, draws=0), "at least one step and one draw"),
        (lambda: likelihood_maximisation(GAUSSIAN, SHAPE, radius=0.0), "radius above 0"),
        (lambda: likelihood_maximisation(GAUSSIAN, SHAPE, radius=0.1, sigma_min=0.6), "0 < sigma_min <= sigma_max"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(make: Callable[[], Variant], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_jpeg_of_two_channels_is_refused() -> None:
    with pytest.raises(InputError, match="1 or 3 channels, found 2") as caught:
        jpeg(75).purify(torch.zeros(1, 2, 8, 8))
    assert isinstance(caught.value, DefendError)
