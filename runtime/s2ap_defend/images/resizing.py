"""Images to another size, the same for training and for whoever classifies; and 8-bit pixels to [0, 1]."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2ap_defend.types import Float32, Resize


def resize(images: NDArray[Any], size: tuple[int, int], how: Resize = "crop") -> Float32:
    """Resize images: bilinear, antialiased, in float32, never rounded to 8 bits; values stay in [0, 1].

    Args:
        images: [..., H, W], float32 in [0, 1] or uint8 in 0..255.
        size: (height, width) of the result.
        how: What becomes of another shape, see `Resize`; an image whose cut part has the size is not interpolated.

    Returns:
        float32 [..., height, width] in [0, 1].
    """
    part = central_part(images, size) if how == "crop" else images
    if part.shape[-2:] == size:
        return unit_range(part)
    planes = part.reshape(-1, *part.shape[-2:])
    resized = np.empty((len(planes), *size), dtype=np.float32)
    for plane, result in zip(planes, resized, strict=True):
        result[:] = np.asarray(Image.fromarray(unit_range(plane)).resize(size[::-1], Image.Resampling.BILINEAR))
    return np.clip(resized, 0.0, 1.0).reshape(*part.shape[:-2], *size)


def central_part(images: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The largest central part of images [..., H, W] whose sides are as `size`, to the nearest pixel."""
    height, width = images.shape[-2:]
    wanted_height, wanted_width = size
    if height * wanted_width > width * wanted_height:
        height = max(1, round(width * wanted_height / wanted_width))
    else:
        width = max(1, round(height * wanted_width / wanted_height))
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def unit_range(pixels: NDArray[Any]) -> Float32:
    """8-bit pixels in [0, 1], v / 255 in float32; float32 pixels as they are. Contiguous."""
    if pixels.dtype == np.uint8:
        scaled: Float32 = np.divide(pixels, np.float32(255.0), dtype=np.float32)
        return np.ascontiguousarray(scaled)
    return np.ascontiguousarray(pixels, dtype=np.float32)
