"""Everything that can stand in the purifier's place, behind one type: our own purifier, its absence, and baselines.

A variant is three functions of images with the same values and different gradients: what an attacker that knows it
would compute with. None lets one image of a batch influence another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_train.purifier.baselines import (
    AdamDescent,
    adam_purify,
    jpeg_round_trip,
    squeeze_bits,
    stratified_levels,
    uniform_levels,
)
from s2ap_train.purifier.gradient_path import GradientPath, Images, bpda, pass_through, purified
from s2ap_train.purifier.purify import Purification, Score, purify

__all__ = [
    "Variant",
    "bit_depth",
    "jpeg",
    "likelihood_maximisation",
    "noise_and_denoise",
    "off",
    "one_step_denoise",
    "purification",
    "score_opt",
]


@dataclass(frozen=True)
class Variant:
    """Something that is done to images before they are classified.

    The functions take images [B, C, H, W] in [0, 1] and return the same.

    Attributes:
        name: Name in tables.
        exact: The exact thing, with its exact gradient where it has one (of rounding: zero).
        straight_through: The same values; clamps and rounding pass gradients unchanged.
        surrogate: The same values; the gradient is that of the J-free purifier for a purification, else that of the
            identity (BPDA, Athalye et al. 2018, arXiv 1802.00420).
        work: Passes of the score network over one image, forward or backward each one.
        depth: Those of them that wait for another.
        stochastic: Draws fresh noise in every call, so the values of two calls differ.
        traceable: Plain torch operators and no fresh noise: it can be exported.
    """

    name: str
    exact: Images
    straight_through: Images
    surrogate: Images
    work: int
    depth: int
    stochastic: bool = False
    traceable: bool = True

    def purify(self, images: Tensor, path: GradientPath = "exact") -> Tensor:
        """Purified images, with the gradient of a path: see `purified`."""
        return purified(
            images, path, exact=self.exact, straight_through=self.straight_through, surrogate=self.surrogate
        )


def off() -> Variant:
    """No purifier: the images as they are."""
    return Variant("off", _identity, _identity, _identity, work=0, depth=0)


def purification(name: str, net: Score, bank: Tensor, config: Purification) -> Variant:
    """Our purifier.

    Args:
        name: Name in tables.
        net: The score model, in evaluation mode.
        bank: Noise directions [M, C, H, W] from `hadamard_bank`, on the device and of the type of the images.
        config: Its hyper-parameters.
    """
    j_free = replace(config, mode="j_free")

    def exact(x: Tensor) -> Tensor:
        return purify(net, x, bank, config)[0]

    def straight_through(x: Tensor) -> Tensor:
        return purify(net, x, bank, config, straight_through=True)[0]

    def surrogate(x: Tensor) -> Tensor:
        return pass_through(exact(x.detach()), purify(net, x, bank, j_free)[0])

    return Variant(name, exact, straight_through, surrogate, work=config.work, depth=config.depth)


def one_step_denoise(net: Score, sigma: float) -> Variant:
    """The denoiser applied once to the image itself, to which no noise was added: D(x) = x - sigma net(x, sigma).

    Args:
        net: The score model, in evaluation mode.
        sigma: Noise level that the denoiser is given, pixels.

    Raises:
        RecipeError: Unless sigma is positive.
    """
    _check_sigma(sigma)

    def denoise(x: Tensor) -> Tensor:
        return x - sigma * net(x, sigma)

    return _clamped("one-step-denoise", denoise, work=1, depth=1)


def noise_and_denoise(net: Score, sigma: float, seed: int) -> Variant:
    """Fresh Gaussian noise, then the denoiser once: D(x + sigma e), the one-step form of DiffPure (arXiv 2205.07460).

    DiffPure itself solves the reverse process in many steps; denoising in one is as in Carlini et al. (2023, arXiv
    2206.10550). Attack it with expectation over transformation.

    Args:
        net: The score model, in evaluation mode.
        sigma: Noise level, pixels.
        seed: Of the variant's own generator, which every call, to any of its functions, takes further.

    Raises:
        RecipeError: Unless sigma is positive.
    """
    _check_sigma(sigma)
    generator = torch.Generator().manual_seed(seed)

    def denoise(x: Tensor) -> Tensor:
        noisy = x + sigma * torch.randn(x.shape, generator=generator).to(x)
        return noisy - sigma * net(noisy, sigma)

    return _clamped("noise-and-denoise", denoise, work=1, depth=1, stochastic=True, traceable=False)


def score_opt(
    net: Score,
    shape: tuple[int, int, int],
    *,
    sigma: float = 0.25,
    spread: float = 0.05,
    steps: int = 5,
    step_size: float = 0.05,
    draws: int = 1,
    seed: int = 0,
) -> Variant:
    """In the style of ScoreOpt (NeurIPS 2023, arXiv 2307.04333), of its variant on x: Adam on ||D(x + sigma e) - x||^2.

    As there: Adam, one noise level a step, drawn from sigma +- spread, no ball about the input, a clamp to [0, 1] at
    the end. Defaults are those of its published script for adaptive attacks on CIFAR-10, halved: images there are in
    [-1, 1]. Unlike there: noise and levels are drawn once, from a seed, so it is deterministic, and weaker against an
    attack that knows them; the score model is ours; the error is summed over each image, not averaged over the batch.

    Args:
        net: The score model, in evaluation mode.
        shape: (C, H, W) of the images.
        sigma: Middle of the noise levels, pixels.
        spread: Half their range, pixels.
        steps: Adam steps.
        step_size: Learning rate, pixels.
        draws: Noise directions a step; 1 there.
        seed: Of noise and levels.

    Raises:
        RecipeError: If a length or count is out of range.
    """
    levels = uniform_levels(sigma - spread, sigma + spread, steps, seed)
    return _adam("score-opt-style", net, shape, AdamDescent(levels, step_size, None, draws, seed))


def likelihood_maximisation(
    net: Score,
    shape: tuple[int, int, int],
    *,
    radius: float,
    sigma_min: float = 0.05,
    sigma_max: float = 0.5,
    steps: int = 5,
    step_size: float = 0.05,
    draws: int = 1,
    seed: int = 0,
) -> Variant:
    """In the style of Likelihood Maximisation (Chen et al., ICML 2024, arXiv 2305.15241), its purification alone.

    As there: gradient steps on the denoising error over noise levels, a bound on the likelihood, in a ball about the
    input (here l_inf); Adam, five steps and the learning rate are of the code published with it, which draws levels
    from .2 to .3 in our pixels (images there are in [-1, 1], so lengths are halved here). Unlike there: levels are
    log-uniform, one in each of `steps` strata, noise and levels are drawn once, from a seed; the error is
    ||D(x + sigma e) - x||^2 at every level, without the bound's weights; the score model is ours, and the generative
    classifier that the paper puts behind it is not part of this.

    Args:
        net: The score model, in evaluation mode.
        shape: (C, H, W) of the images.
        radius: Of the l_inf ball, pixels.
        sigma_min: Lowest noise level, pixels; the score model must be trained from there.
        sigma_max: Highest noise level.
        steps: Adam steps.
        step_size: Learning rate, pixels.
        draws: Noise directions a step; 1 there.
        seed: Of noise and levels.

    Raises:
        RecipeError: If a length or count is out of range.
    """
    levels = stratified_levels(sigma_min, sigma_max, steps, seed)
    config = AdamDescent(levels, step_size, radius, draws, seed)
    return _adam("likelihood-maximisation-style", net, shape, config)


def bit_depth(bits: int) -> Variant:
    """Pixels rounded to 2 ** bits values (feature squeezing, Xu et al., NDSS 2018). Its exact gradient is zero.

    Raises:
        RecipeError: Unless bits is 1 to 8.
    """
    if not 1 <= bits <= 8:
        raise RecipeError(f"bits must be 1 to 8, found {bits}")

    def squeeze(x: Tensor) -> Tensor:
        return squeeze_bits(x, bits)

    past = partial(bpda, squeeze)
    return Variant(f"bit-depth-{bits}", squeeze, past, past, work=0, depth=0)


def jpeg(quality: int) -> Variant:
    """JPEG and back. It has no gradient at all, so that of the identity stands for it in all three functions (BPDA).

    Raises:
        RecipeError: Unless quality is 1 to 100.
    """
    if not 1 <= quality <= 100:
        raise RecipeError(f"quality must be 1 to 100, found {quality}")
    past = partial(bpda, lambda x: jpeg_round_trip(x, quality))
    return Variant(f"jpeg-{quality}", past, past, past, work=0, depth=0, traceable=False)


def _adam(name: str, net: Score, shape: tuple[int, int, int], config: AdamDescent) -> Variant:
    noise = config.noise(shape)

    def exact(x: Tensor) -> Tensor:
        return adam_purify(net, x, noise.to(x.device, x.dtype), config)

    def straight_through(x: Tensor) -> Tensor:
        return adam_purify(net, x, noise.to(x.device, x.dtype), config, straight_through=True)

    depth = 2 * len(config.levels)
    work = depth * config.draws
    return Variant(name, exact, straight_through, partial(bpda, exact), work=work, depth=depth)


def _clamped(
    name: str, function: Images, *, work: int, depth: int, stochastic: bool = False, traceable: bool = True
) -> Variant:
    """The variant whose last step is a clamp to [0, 1]."""

    def exact(x: Tensor) -> Tensor:
        return function(x).clamp(0, 1)

    def straight_through(x: Tensor) -> Tensor:
        free = function(x)
        return pass_through(free.clamp(0, 1), free)

    return Variant(name, exact, straight_through, partial(bpda, exact), work, depth, stochastic, traceable)


def _identity(x: Tensor) -> Tensor:
    return x


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < float("inf"):
        raise RecipeError(f"sigma must be above 0 and finite, found {sigma}")
