"""How well noise is removed: the error of a denoiser by sigma, and the closed form that a network has to beat.

A score model is judged between two denoisers that need no training: the identity, whose error is 1 in the unit used
here, and the best denoiser of a Gaussian with the mean and the covariance of the training pixels. The second is the
optimum among all linear denoisers; whatever a network does better is what it knows beyond second moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from s2ap_train.compute.memory import images_at_once

__all__ = [
    "DenoisingError",
    "FullGaussian",
    "LinearDenoiser",
    "StationaryGaussian",
    "denoising_error",
    "denoising_errors",
    "fit_gaussian",
    "log_spaced",
]

LARGEST_FULL_COVARIANCE = 1024
"""Pixels times channels up to which the covariance is kept whole: 28x28 in one channel. The time grows as its cube."""
_MOST_IMAGES_TO_FIT = 10_000  # the covariance of more differs less than the errors that are compared
_NOISE_SEED = 2024
_IMAGES_AT_ONCE = 256


class LinearDenoiser(Protocol):
    """The best denoiser of a Gaussian; as a score model it is net(y, sigma) -> noise, [B, C, H, W]."""

    def __call__(self, noisy: Tensor, sigma: float, /) -> Tensor:
        """Expected noise e given y = x + sigma e."""

    def expected_error(self, sigma: float) -> float:
        """Its denoising error on all data with the mean and covariance that it was fitted to, Gaussian or not."""


class FullGaussian:
    """x ~ N(mean, C) with every covariance: D(y) = mean + C (C + sigma^2)^-1 (y - mean).

    Its noise prediction is (y - D(y)) / sigma = sigma (C + sigma^2)^-1 (y - mean).

    Args:
        images: What to fit, [N, C, H, W]; computed in float64.
    """

    def __init__(self, images: Tensor) -> None:
        flat = images.flatten(1).double()
        self.mean = flat.mean(0)  # [d]
        centred = flat - self.mean
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(centred.T @ centred / len(flat))  # [d], [d, d]
        self.eigenvalues = self.eigenvalues.clamp(min=0)

    def __call__(self, noisy: Tensor, sigma: float) -> Tensor:
        """Expected noise in y = x + sigma e, [B, C, H, W] -> the same."""
        mean, vectors, values = (t.to(noisy.device) for t in (self.mean, self.eigenvectors, self.eigenvalues))
        coordinates = (noisy.flatten(1).double() - mean) @ vectors
        noise = (coordinates * (sigma / (values + sigma**2))) @ vectors.T
        return noise.to(noisy.dtype).reshape(noisy.shape)

    def expected_error(self, sigma: float) -> float:
        """The mean of lambda / (lambda + sigma^2) over the eigenvalues lambda of C."""
        return float((self.eigenvalues / (self.eigenvalues + sigma**2)).mean())


class StationaryGaussian:
    """As `FullGaussian`, with a covariance that depends on channels and distance alone, the image being periodic.

    Such a covariance is block diagonal in the Fourier basis: a C x C matrix for every frequency. It is the optimum
    among linear denoisers that treat all places alike (the mean is still that of each pixel), so it is weaker than
    `FullGaussian` where places differ; it needs the memory of a few images where the other needs (C H W)^2 numbers.

    Args:
        images: What to fit, [N, C, H, W]; computed in float64.
    """

    def __init__(self, images: Tensor) -> None:
        self.mean = images.double().mean(0)  # [C, H, W]
        channels, height, width = images.shape[1:]
        spectrum = torch.zeros(height, width, channels, channels, dtype=torch.complex128, device=images.device)
        for part in torch.split(images, images_at_once(_IMAGES_AT_ONCE, images.shape)):
            waves = torch.fft.fft2(part.double() - self.mean, norm="ortho")
            spectrum += torch.einsum("bchw,bdhw->hwcd", waves, waves.conj())
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(spectrum / len(images))  # [H, W, C], [H, W, C, C]
        self.eigenvalues = self.eigenvalues.clamp(min=0)

    def __call__(self, noisy: Tensor, sigma: float) -> Tensor:
        """Expected noise in y = x + sigma e, [B, C, H, W] -> the same."""
        mean, vectors, values = (t.to(noisy.device) for t in (self.mean, self.eigenvectors, self.eigenvalues))
        waves = torch.fft.fft2(noisy.double() - mean, norm="ortho")
        coordinates = torch.einsum("hwdc,bdhw->bhwc", vectors.conj(), waves) * (sigma / (values + sigma**2))
        noise: Tensor = torch.fft.ifft2(torch.einsum("hwcd,bhwd->bchw", vectors, coordinates), norm="ortho").real
        return noise.to(noisy.dtype)

    def expected_error(self, sigma: float) -> float:
        """The mean of lambda / (lambda + sigma^2) over the eigenvalues lambda of all frequencies."""
        return float((self.eigenvalues / (self.eigenvalues + sigma**2)).mean())


def fit_gaussian(images: Tensor) -> LinearDenoiser:
    """The closed-form denoiser of images [N, C, H, W]: whole covariance for small ones, stationary for large ones.

    Of more than 10,000 images every k-th is used.
    """
    images = images[:: -(-len(images) // _MOST_IMAGES_TO_FIT)]
    kind = FullGaussian if images[0].numel() <= LARGEST_FULL_COVARIANCE else StationaryGaussian
    return kind(images)


@dataclass(frozen=True)
class DenoisingError:
    """Denoising errors at one sigma, as fractions of the noise's energy; the identity has 1.

    Attributes:
        sigma: Noise level in [0, 1] pixels.
        net: Of the score model, on validation images.
        gaussian: Of the closed-form Gaussian denoiser, on the same images and noise.
        gaussian_expected: What the closed form promises on data with the training images' mean and covariance.
    """

    sigma: float
    net: float
    gaussian: float
    gaussian_expected: float


def denoising_errors(
    net: Callable[[Tensor, float], Tensor], gaussian: LinearDenoiser, images: Tensor, sigmas: Sequence[float]
) -> tuple[DenoisingError, ...]:
    """The score model next to the Gaussian at each sigma; arguments as in `denoising_error`."""
    ours, theirs = denoising_error(net, images, sigmas), denoising_error(gaussian, images, sigmas)
    return tuple(
        DenoisingError(sigma, net=mine, gaussian=closed, gaussian_expected=gaussian.expected_error(sigma))
        for sigma, mine, closed in zip(sigmas, ours, theirs, strict=True)
    )


@torch.no_grad()
def denoising_error(net: Callable[[Tensor, float], Tensor], images: Tensor, sigmas: Sequence[float]) -> list[float]:
    """Mean ||D(x + sigma e) - x||^2 / ||sigma e||^2 at each sigma; 1 is the error of the identity, of not denoising.

    The noise is the same in every call with images of one shape.

    Args:
        net: The score model, net(y, sigma) -> noise.
        images: Clean images [N, C, H, W] in [0, 1].
        sigmas: Noise levels in pixels.
    """
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    errors, size = [], images_at_once(_IMAGES_AT_ONCE, images.shape)
    for sigma in sigmas:
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        left = sum(
            (net(x + sigma * e, sigma) - e).square().sum()
            for x, e in zip(torch.split(images, size), torch.split(noise, size), strict=True)
        )
        errors.append(float(left / noise.square().sum()))
    return errors


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """`count` numbers from `low` to `high`, both included, with equal ratios."""
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]
