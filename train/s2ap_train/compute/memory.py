"""How many images are computed together."""

import math
from collections.abc import Sequence

_PIXELS = 64 * 64
"""Pixels of an image up to which as many images are computed together as is fast; larger ones take more memory each."""


def images_at_once(most: int, shape: Sequence[int]) -> int:
    """Images that together have no more pixels than `most` images of 64x64; `most` itself up to that size.

    Args:
        most: Images of up to 64x64 pixels.
        shape: [..., H, W] of the images.
    """
    return max(1, min(most, most * _PIXELS // max(1, math.prod(shape[-2:]))))
