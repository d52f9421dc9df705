"""Common corruptions of images (Hendrycks and Dietterich 2019, arXiv 1903.12261): what happens without an attacker.

Severities run from 1 to 5 with the constants of the paper's benchmarks: those of CIFAR-10-C for images of at most 64
pixels a side, those of ImageNet-C for larger ones. Severity 0 changes nothing. Images are float32 [N, C, H, W] in
[0, 1], before and after.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from s2ap_defend.types import Float32

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupted"]

SEVERITIES = (1, 2, 3, 4, 5)
_SMALL = 64  # pixels of a side

_CONSTANTS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = MappingProxyType(
    {  # (CIFAR-10-C, ImageNet-C)
        "gaussian-noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),  # sigma, pixels in [0, 1]
        "blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)),  # sigma, positions
        "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),  # what is left of it
        "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),  # added to the value of HSV
        "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),  # quality
    }
)


def corrupted(name: str, images: Float32, *, severity: int, seed: int) -> Float32:
    """Images after one corruption.

    Args:
        name: One of `CORRUPTIONS`.
        images: Clean images.
        severity: 0 to 5; 0 leaves the images as they are.
        seed: Of the noise; the others are deterministic.

    Raises:
        ValueError: If there is no such corruption or severity.
    """
    if name not in CORRUPTIONS or severity not in {0, *SEVERITIES}:
        raise ValueError(f"corruption {name!r} of severity {severity} is none of {', '.join(CORRUPTIONS)} from 0 to 5")
    if severity == 0:
        return images.copy()
    small, large = _CONSTANTS[name]
    constant = (small if max(images.shape[2:]) <= _SMALL else large)[severity - 1]
    changed = CORRUPTIONS[name](torch.from_numpy(images), constant, torch.Generator().manual_seed(seed))
    result: Float32 = changed.clamp(0.0, 1.0).numpy()
    return result


def _gaussian_noise(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=generator)


def _blur(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    from torchvision.transforms.v2.functional import gaussian_blur

    reach = min(math.ceil(4 * sigma), min(x.shape[2:]) - 1)  # reflected at the borders, so less than a side
    blurred: Tensor = gaussian_blur(x, [2 * reach + 1] * 2, [sigma] * 2)
    return blurred


def _contrast(x: Tensor, left: float, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    mean = x.mean(dim=(2, 3), keepdim=True)
    return mean + left * (x - mean)


def _brightness(x: Tensor, added: float, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Raise the value of HSV, which is the largest channel: hue and saturation stay, so channels keep their ratios."""
    value = x.amax(dim=1, keepdim=True)
    raised = (value + added).clamp(max=1.0)
    return torch.where(value > 0, x * raised / value.clamp_min(1e-12), raised)


def _jpeg(x: Tensor, quality: float, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return torch.stack([_coded(image, int(quality)) for image in x])


def _coded(image: Tensor, quality: int) -> Tensor:
    """An image [C, H, W] after JPEG: three channels as a colour image, each of another number as a grey one."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()  # [H, W, C]
    planes = [pixels] if pixels.shape[2] == 3 else [pixels[:, :, channel] for channel in range(pixels.shape[2])]
    decoded = []
    for plane in planes:
        file = io.BytesIO()
        Image.fromarray(plane).save(file, "JPEG", quality=quality)
        decoded.append(np.atleast_3d(np.asarray(Image.open(file))))
    return torch.from_numpy(np.concatenate(decoded, axis=2).astype(np.float32) / 255).permute(2, 0, 1)


CORRUPTIONS: Mapping[str, Callable[[Tensor, float, torch.Generator], Tensor]] = MappingProxyType(
    {
        "gaussian-noise": _gaussian_noise,
        "blur": _blur,
        "contrast": _contrast,
        "brightness": _brightness,
        "jpeg": _jpeg,
    }
)
"""(images [N, C, H, W], constant of the severity, source of noise) -> corrupted images, not cut to [0, 1] yet."""
