"""Sizes of the score model by the images that it is for, and what a pass of it costs."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from torch import Tensor, nn

from s2ap_train.models.cost import flops
from s2ap_train.purifier.unet import UNet, padded_sides

__all__ = ["NetworkSize", "Size", "fold_for", "multipliers_for", "pass_flops", "width_for"]

Size = Literal["standard", "fast", "tiny"]
"""'fast' has half the channels; 'tiny' those of 'fast' on images that are folded by two more."""

_HALVINGS = ((16, 1), (47, 2))
"""(longer folded side in pixels up to, times that the resolution halves); larger ones halve `_MOST_HALVINGS` times."""
_MOST_HALVINGS = 3
_WIDTHS = ((16, 16), (28, 32))
"""(side in pixels up to, channels of the first level); larger images have `_LARGEST_WIDTH` for each step of the fold.

The side of an image that is not square is that of the square with as many pixels."""
_LARGEST_WIDTH = 64
_WIDEST_FOLD = 4  # the width grows no further: 256 channels have 51 million weights
_LARGEST_FOLDED = 64  # side of a folded image, pixels
_MOST_PADDING = 4 / 3  # pixels with padding, as a multiple of those without


class NetworkSize(NamedTuple):
    """Arguments of a `UNet`.

    Attributes:
        width: Channels of the first level.
        multipliers: Channels of each level in units of `width`.
        fold: Side of the squares of pixels that become channels; 1 folds nothing.
    """

    width: int
    multipliers: tuple[int, ...]
    fold: int = 1


def fold_for(image_shape: tuple[int, int, int], size: Size = "standard") -> int:
    """The fold for images (C, H, W): 1 up to 64x64 pixels, 2 up to 128x128, 4 up to 256x256; 'tiny' has twice that."""
    side = _side(image_shape)
    fold = 1
    while side > fold * _LARGEST_FOLDED and _padding(image_shape, 2 * fold) <= _MOST_PADDING:
        fold *= 2
    return 2 * fold if size == "tiny" and _padding(image_shape, 2 * fold) <= _MOST_PADDING else fold


def width_for(image_shape: tuple[int, int, int], size: Size, fold: int | None = None) -> int:
    """Channels of the first level: 16 for 8x8 images, 32 for 28x28, 64 for 32x32 and 64x64; 'fast' has half of them.

    Half the channels are about a quarter of the parameters and of the time. A fold multiplies them, so that a pass
    costs as much a pixel as without one: a convolution of f times the channels is f^2 times the work at each of f^2
    times fewer places. Beyond a fold of 4 the width stays. The further fold of 'tiny' multiplies nothing: a quarter of
    the places with the channels of 'fast', a sixteenth of the work of 'standard'.

    Args:
        image_shape: (C, H, W).
        size: 'standard', 'fast' or 'tiny'.
        fold: Of the network; None: `fold_for`.
    """
    side, fold = _side(image_shape), fold_for(image_shape, size) if fold is None else fold
    width = next((channels for limit, channels in _WIDTHS if side <= limit), _LARGEST_WIDTH)
    if size == "tiny":
        fold = max(fold // 2, 1)
    return width * min(fold, _WIDEST_FOLD) // (1 if size == "standard" else 2)


def multipliers_for(image_shape: tuple[int, int, int], fold: int | None = None) -> tuple[int, ...]:
    """Channels of each level in units of the first one's: (1, 2) for 8x8 images, (1, 2, 2) for 28x28 and 32x32.

    Folded images of 48x48 pixels or more have four levels. There are fewer where the padding that is needed to halve a
    folded image so often would add more than a third of its pixels.

    Args:
        image_shape: (C, H, W).
        fold: Of the network; None: `fold_for`.
    """
    fold = fold_for(image_shape) if fold is None else fold
    side = math.ceil(max(image_shape[1:]) / fold)
    wanted = next((times for limit, times in _HALVINGS if side <= limit), _MOST_HALVINGS)
    while wanted and _padding(image_shape, fold * 2**wanted) > _MOST_PADDING:
        wanted -= 1
    return (1, *(2,) * wanted)


def pass_flops(net: UNet, image_shape: tuple[int, int, int]) -> int:
    """Floating point operations of one forward pass for one image (C, H, W), a multiply-add counted as 2."""
    return flops(_AtOneSigma(net), image_shape)


def _side(image_shape: tuple[int, int, int]) -> float:
    """Side of the square of as many pixels."""
    return math.sqrt(math.prod(image_shape[1:]))


def _padding(image_shape: tuple[int, int, int], multiple: int) -> float:
    """Pixels with padding to this multiple, of those without."""
    return math.prod(padded_sides(image_shape[1:], multiple)) / math.prod(image_shape[1:])


class _AtOneSigma(nn.Module):
    """A score model as a function of the image alone."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, noisy: Tensor) -> Tensor:
        """Any sigma costs the same."""
        noise: Tensor = self.net(noisy, 0.1)
        return noise
