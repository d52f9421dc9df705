"""Images to another size, the same for training and for whoever classifies."""

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2ap_defend.errors import InputError
from s2ap_defend.types import Float32, Resize

__all__ = ["resize", "unit_range"]


def resize(images: NDArray[Any], size: tuple[int, int], how: Resize = "crop") -> Float32:
    """Resize images: bilinear, antialiased, in float32, never rounded to 8 bits; values stay in [0, 1].

    Args:
        images: [..., H, W], float32 in [0, 1] or uint8 in 0..255.
        size: (height, width) of the result.
        how: What becomes of another shape, see `Resize`.

    Returns:
        float32 [..., height, width] in [0, 1]; an image of this size as it is.

    Raises:
        InputError: If there is no such way to resize.
    """
    if how not in get_args(Resize):
        raise InputError(f"resize is {how!r}, expected one of {', '.join(get_args(Resize))}")
    if how == "pad":
        height, width = _within(images.shape[-2:], size)
        padded = np.zeros((*images.shape[:-2], *size), dtype=np.float32)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        padded[..., top : top + height, left : left + width] = _interpolated(images, (height, width))
        return padded
    if how == "crop":
        height, width = _within(size, images.shape[-2:])
        top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
        images = images[..., top : top + height, left : left + width]
    return _interpolated(images, size)


def _within(shape: tuple[int, ...], bounds: tuple[int, ...]) -> tuple[int, int]:
    """The largest (height, width) of the proportions of `shape` within `bounds`, to the nearest pixel."""
    height, width = bounds
    if height * shape[1] > width * shape[0]:
        return max(1, round(width * shape[0] / shape[1])), width
    return height, max(1, round(height * shape[1] / shape[0]))


def _interpolated(images: NDArray[Any], size: tuple[int, int]) -> Float32:
    if images.shape[-2:] == size:
        return unit_range(images)
    planes = images.reshape(-1, *images.shape[-2:])
    resized = np.empty((len(planes), *size), dtype=np.float32)
    for plane, result in zip(planes, resized, strict=True):
        result[:] = np.asarray(Image.fromarray(unit_range(plane)).resize(size[::-1], Image.Resampling.BILINEAR))
    return np.clip(resized, 0.0, 1.0).reshape(*images.shape[:-2], *size)


def unit_range(pixels: NDArray[Any]) -> Float32:
    """8-bit pixels in [0, 1], v / 255 in float32; float32 pixels as they are. Contiguous."""
    scaled = np.divide(pixels, np.float32(255.0), dtype=np.float32) if pixels.dtype == np.uint8 else pixels
    return np.ascontiguousarray(scaled, dtype=np.float32)
