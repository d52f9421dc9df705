"""Deterministic purification: projected descent on the expected reconstruction error of a denoiser.

Our own specification in the line of ScoreOpt (Zhang et al., NeurIPS 2023) and PurSAMERE (arXiv 2602.06269), whose
details are not public. With the noise prediction n(y) and the denoiser D(y) = y - sigma n(y),

    r(z, e) = D(z + sigma e) - z = sigma (e - n(z + sigma e)),    E(z) = mean over the bank of ||r(z, e)||^2.

The bank is fixed, so the purifier is a deterministic, differentiable function of each image alone. The functions can
be traced by torch.fx and differentiated again: what is exported and what a white-box attack sees is this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError

__all__ = ["Mode", "Purification", "Score", "descend", "field", "purify"]

Mode = Literal["full", "j_free"]
Score = Callable[[Tensor, float], Tensor]
"""net(y, sigma): the noise in y = x + sigma e, [B, C, H, W] -> [B, C, H, W]."""

FieldAt = Callable[[Tensor], tuple[Tensor, Tensor]]

NORM_FLOOR = 1e-12
"""Added under the root of a squared norm, so that a zero gradient has a direction and a derivative: zero."""


@dataclass(frozen=True)
class Purification:
    """Hyper-parameters of `purify`; lengths in [0, 1] pixels.

    Attributes:
        sigma: Noise level at which the denoiser is asked.
        radius: Radius of the ball about the input that the result stays in.
        steps: Number K of descent steps.
        step_size: Factor eta of the half gradient.
        rho: Length, in the Euclidean norm, of the ascent before each step (sharpness-aware minimisation, Foret et al.
            2021, arXiv 2010.01412); 0 is plain descent.
        mode: 'full' descends along the gradient of E; 'j_free' leaves out the denoiser's Jacobian.
        norm: Norm of the ball.
        reuse_ascent: Ascend along the previous step's gradient: nearly halves the work.
        bank_size: Number M of noise directions.
        bank_seed: Their seed.
    """

    sigma: float = 0.3
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
            RecipeError: If a length is out of range, a count below one, or a name unknown.
        """
        if min(self.sigma, self.step_size) <= 0 or min(self.radius, self.rho) < 0 or self.steps < 1:
            raise RecipeError(
                f"this cannot purify: {self}; sigma and step_size are above 0, radius and rho at least 0, "
                "steps at least 1"
            )
        if self.mode not in ("full", "j_free") or self.norm not in ("linf", "l2"):
            raise RecipeError(f"purifier mode {self.mode!r}, norm {self.norm!r}: choose full or j_free, linf or l2")
        if self.bank_size < 2 or self.bank_size % 2:
            raise RecipeError(f"bank_size must be even and at least 2, found {self.bank_size}")


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


def purify(net: Score, x: Tensor, bank: Tensor, config: Purification) -> tuple[Tensor, Tensor]:
    """Purify images: K steps of projected (sharpness-aware) descent on E, unrolled.

    Args:
        net: The score model, in evaluation mode.
        x: Images [B, C, H, W] in [0, 1].
        bank: Noise directions [M, C, H, W], from `hadamard_bank`.
        config: Hyper-parameters; its `bank_size` and `bank_seed` only describe the bank.

    Returns:
        (purified images in [0, 1] and in the ball about x, E [B] where the last step's gradient was taken).
    """
    return descend(lambda z: field(net, z, config.sigma, bank, config.mode), x, config)


def descend(field_at: FieldAt, x: Tensor, config: Purification) -> tuple[Tensor, Tensor]:
    """The descent of `purify` along any field: images [B, C, H, W] -> (half gradient [B, C, H, W], error [B])."""
    z, gradient = x, None
    for _ in range(config.steps):
        if gradient is None or config.rho == 0 or not config.reuse_ascent:
            gradient, error = field_at(z)
        if config.rho > 0:
            ascended = z + gradient * (config.rho / _norm(gradient))
            gradient, error = field_at(ascended)
        z = (x + _into_ball(z - config.step_size * gradient - x, config)).clamp(0, 1)
    return z, error


def _norm(delta: Tensor) -> Tensor:
    """Euclidean norm of each sample [B, 1, 1, 1]."""
    return (delta.square().flatten(1).sum(dim=1) + NORM_FLOOR).sqrt()[:, None, None, None]


def _into_ball(delta: Tensor, config: Purification) -> Tensor:
    if config.norm == "linf":
        return delta.clamp(-config.radius, config.radius)
    return delta * (config.radius / _norm(delta)).clamp(max=1)
