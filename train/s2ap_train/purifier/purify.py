"""Deterministic purification: projected descent on the expected reconstruction error of a denoiser.

Our own specification in the line of ScoreOpt (Zhang et al., NeurIPS 2023) and PurSAMERE (arXiv 2602.06269), whose
details are not public. With the noise prediction n(y) and the denoiser D(y) = y - sigma n(y),

    r(z, e) = D(z + sigma e) - z = sigma (e - n(z + sigma e)),    E(z) = mean over the bank of ||r(z, e)||^2.

The bank is fixed, so the purifier is a deterministic, differentiable function of each image alone. The functions can
be traced by torch.fx and differentiated again: what is exported and what a white-box attack sees is this file.
`trajectory` alone is for looking at a purifier and not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_train.purifier.gradient_path import pass_through

__all__ = [
    "FieldAt",
    "Mode",
    "Purification",
    "Score",
    "StepRecord",
    "descend",
    "field",
    "purify",
    "trajectory",
]

Mode = Literal["full", "j_free"]
Score = Callable[[Tensor, float], Tensor]
"""net(y, sigma): the noise in y = x + sigma e, [B, C, H, W] -> [B, C, H, W]."""

FieldAt = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""field_at(z, sigma): images [B, C, H, W] -> (half gradient [B, C, H, W], error [B])."""

NORM_FLOOR = 1e-12
"""Added under the root of a squared norm, so that a zero gradient has a direction and a derivative: zero."""


@dataclass(frozen=True)
class Purification:
    """Hyper-parameters of `purify`; lengths in [0, 1] pixels.

    Attributes:
        sigma: Noise level at which the denoiser is asked: one for all steps, or a schedule with one for each.
        radius: Radius of the ball about the input that the result stays in.
        steps: Number K of descent steps; 0 switches the purifier off: it returns its input.
        step_size: Factor eta of the half gradient.
        rho: Length, in the Euclidean norm, of the ascent before each step (sharpness-aware minimisation, Foret et al.
            2021, arXiv 2010.01412); 0 is plain descent.
        mode: 'full' descends along the gradient of E; 'j_free' leaves out the denoiser's Jacobian.
        norm: Norm of the ball.
        reuse_ascent: Ascend along the previous step's gradient: nearly halves the work. With a schedule that gradient
            is of the previous step's sigma; only its direction is used.
        bank_size: Number M of noise directions.
        bank_seed: Their seed.
    """

    sigma: float | tuple[float, ...] = 0.3
    radius: float = 0.3
    steps: int = 3
    step_size: float = 0.7
    rho: float = 0.2
    mode: Mode = "full"
    norm: Literal["linf", "l2"] = "linf"
    reuse_ascent: bool = False
    bank_size: int = 4
    bank_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no purifier.

        Raises:
            RecipeError: If a length is out of range, a count below one (steps: zero), the seed below zero, a schedule
                does not fit the steps, or a name is unknown.
        """
        schedule = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)
        lengths = (*schedule, self.step_size, self.radius, self.rho)
        if min((*schedule, self.step_size)) <= 0 or min(self.radius, self.rho) < 0 or self.steps < 0:
            raise RecipeError(
                f"this cannot purify: {self}; sigma and step_size are above 0, radius and rho at least 0, "
                "steps at least 0 (0 is off)"
            )
        if not all(math.isfinite(length) for length in lengths):
            raise RecipeError(f"this cannot purify: {self}; sigma, step_size, radius and rho must be finite numbers")
        if isinstance(self.sigma, tuple) and len(self.sigma) != self.steps:
            raise RecipeError(
                f"sigma is a schedule of {len(self.sigma)} for {self.steps} steps; give one sigma for each step, or "
                "one number for all"
            )
        if self.mode not in ("full", "j_free") or self.norm not in ("linf", "l2"):
            raise RecipeError(f"purifier mode {self.mode!r}, norm {self.norm!r}: choose full or j_free, linf or l2")
        if self.bank_size < 2 or self.bank_size % 2:
            raise RecipeError(f"bank_size must be even and at least 2, found {self.bank_size}")
        if self.bank_seed < 0:
            raise RecipeError(f"bank_seed must be at least 0, found {self.bank_seed}")

    @property
    def off(self) -> bool:
        """Whether nothing is purified: no steps."""
        return self.steps == 0

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise level of every step; () when off."""
        return self.sigma if isinstance(self.sigma, tuple) else (self.sigma,) * self.steps

    @property
    def depth(self) -> int:
        """Passes of the score network one after the other, a forward and a backward pass each counting one."""
        ascents = 0 if self.rho == 0 or self.off else 1 if self.reuse_ascent else self.steps
        return (self.steps + ascents) * (2 if self.mode == "full" else 1)

    @property
    def work(self) -> int:
        """Passes of the score network over one image, counted as in `depth`, for all directions of the bank."""
        return self.depth * self.bank_size


@dataclass(frozen=True)
class StepRecord:
    """What one step of the purifier did, for every image.

    Attributes:
        sigma: Noise level of the step, pixels.
        error_before: E at that sigma, before the step [B], squared pixels.
        error: E at that sigma, after it [B].
        moved_linf: Largest change of a pixel since the input, after the step [B], pixels.
        moved_l2: Euclidean distance from the input, after the step [B], pixels.
    """

    sigma: float
    error_before: Tensor
    error: Tensor
    moved_linf: Tensor
    moved_l2: Tensor


def field(net: Score, z: Tensor, sigma: float, bank: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """Half the gradient of the expected reconstruction error, and the error.

    Args:
        net: The score model.
        z: Images [B, C, H, W].
        sigma: Noise level, pixels.
        bank: Noise directions [M, C, H, W].
        mode: 'full': -sigma mean(J_n^T r), exactly half the gradient of E; 'j_free': sigma mean(n), the smoothed mean
            shift, which is half the gradient only up to the denoiser's Jacobian.

    Returns:
        (half gradient [B, C, H, W], E [B] in squared pixels).
    """
    size, shape = bank.shape[0], bank.shape[1:]
    noisy = (z[:, None] + sigma * bank).reshape(-1, *shape)  # [B * M, C, H, W]

    def noise(y: Tensor) -> Tensor:
        return net(y, sigma)

    if mode == "full":
        predicted, pull_back = torch.func.vjp(noise, noisy)[:2]
    else:
        predicted = noise(noisy)
    residual = sigma * (bank - predicted.reshape(-1, size, *shape))  # [B, M, C, H, W]
    error = residual.square().flatten(1).sum(dim=1) / size
    if mode == "j_free":
        return sigma * predicted.reshape(-1, size, *shape).mean(dim=1), error
    (gradient,) = pull_back(residual.reshape(-1, *shape))
    return -sigma * gradient.reshape(-1, size, *shape).mean(dim=1), error


def purify(
    net: Score, x: Tensor, bank: Tensor, config: Purification, *, straight_through: bool = False
) -> tuple[Tensor, Tensor]:
    """Purify images: K steps of projected (sharpness-aware) descent on E, unrolled.

    Args:
        net: The score model, in evaluation mode.
        x: Images [B, C, H, W] in [0, 1].
        bank: Noise directions [M, C, H, W], from `hadamard_bank`.
        config: Hyper-parameters; its `bank_size` and `bank_seed` only describe the bank.
        straight_through: Let gradients pass the projections onto ball and box unchanged; the values are the same. For
            attacks: a clamp that is active has no gradient to follow.

    Returns:
        (purified images in [0, 1] and in the ball about x, E [B] where the last step's gradient was taken); off: the
        images and zeros.
    """
    return descend(
        lambda z, sigma: field(net, z, sigma, bank, config.mode), x, config, straight_through=straight_through
    )


def descend(
    field_at: FieldAt, x: Tensor, config: Purification, *, straight_through: bool = False
) -> tuple[Tensor, Tensor]:
    """The descent of `purify` along any field; images [B, C, H, W] in [0, 1], results as there."""
    if config.off:
        return x, x.new_zeros(x.shape[0])
    return _iterates(field_at, x, config, straight_through)[-1]


@torch.no_grad()
def trajectory(net: Score, x: Tensor, bank: Tensor, config: Purification) -> tuple[StepRecord, ...]:
    """What each step of `purify` does to E and how far it moves the images; arguments as there.

    The errors are of the images before and after the step, not of the point to which sharpness-aware descent climbs,
    and cost two more calls of the score model a step.
    """

    def error(images: Tensor, sigma: float) -> Tensor:
        return field(net, images, sigma, bank, "j_free")[1]

    steps = _iterates(lambda z, sigma: field(net, z, sigma, bank, config.mode), x, config, straight_through=False)
    records, before = [], x
    for sigma, (after, _) in zip(config.sigmas, steps, strict=True):
        moved = (after - x).flatten(1)
        records.append(
            StepRecord(
                sigma=sigma,
                error_before=error(before, sigma),
                error=error(after, sigma),
                moved_linf=moved.abs().amax(dim=1),
                moved_l2=moved.norm(dim=1),
            )
        )
        before = after
    return tuple(records)


def _iterates(
    field_at: FieldAt, x: Tensor, config: Purification, straight_through: bool
) -> list[tuple[Tensor, Tensor]]:
    """(images, E where their gradient was taken) after every step."""
    z, gradient, iterates = x, None, []
    for sigma in config.sigmas:
        if gradient is None or config.rho == 0 or not config.reuse_ascent:
            gradient, error = field_at(z, sigma)
        if config.rho > 0:
            ascended = z + gradient * (config.rho / _norm(gradient))
            gradient, error = field_at(ascended, sigma)
        delta = z - config.step_size * gradient - x
        inside = _into_ball(delta, config)
        moved = x + (pass_through(inside, delta) if straight_through else inside)
        z = pass_through(moved.clamp(0, 1), moved) if straight_through else moved.clamp(0, 1)
        iterates.append((z, error))
    return iterates


def _norm(delta: Tensor) -> Tensor:
    """Euclidean norm of each sample [B, 1, 1, 1]."""
    return (delta.square().flatten(1).sum(dim=1) + NORM_FLOOR).sqrt()[:, None, None, None]


def _into_ball(delta: Tensor, config: Purification) -> Tensor:
    if config.norm == "linf":
        return delta.clamp(-config.radius, config.radius)
    return delta * (config.radius / _norm(delta)).clamp(max=1)
