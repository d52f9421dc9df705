"""Sizes of the score model by the images that it is for, and what a pass of it costs."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from s2ap_train.models.cost import flops
from s2ap_train.purifier.unet import UNet

__all__ = ["Size", "multipliers_for", "pass_flops", "width_for"]

Size = Literal["standard", "fast"]

_HALVINGS = ((16, 1), (47, 2))
"""(longer side in pixels up to, times that the resolution halves); larger images halve `_MOST_HALVINGS` times."""
_MOST_HALVINGS = 3
_WIDTHS = ((16, 16), (28, 32))
"""(longer side in pixels up to, channels of the first level); larger images have `_LARGEST_WIDTH`."""
_LARGEST_WIDTH = 64


def width_for(image_shape: tuple[int, int, int], size: Size) -> int:
    """Channels of the first level: 16 for 8x8 images, 32 for 28x28, 64 for 32x32 and 64x64; 'fast' has half of them.

    Half the channels are about a quarter of the parameters and of the time.

    Args:
        image_shape: (C, H, W).
        size: 'standard' or 'fast'.
    """
    side = max(image_shape[1:])
    width = next((channels for limit, channels in _WIDTHS if side <= limit), _LARGEST_WIDTH)
    return width if size == "standard" else width // 2


def multipliers_for(image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Channels of each level in units of the first one's: (1, 2) for 8x8 images, (1, 2, 2) for 28x28 and 32x32.

    64x64 and larger images have four levels. An image halves no more often than its sides are even: 28x28 to 7x7.

    Args:
        image_shape: (C, H, W).
    """
    side = max(image_shape[1:])
    wanted = next((times for limit, times in _HALVINGS if side <= limit), _MOST_HALVINGS)
    possible = next(times for times in range(wanted, -1, -1) if not any(n % 2**times for n in image_shape[1:]))
    return (1, *(2,) * possible)


def pass_flops(net: UNet, image_shape: tuple[int, int, int]) -> int:
    """Floating point operations of one forward pass for one image (C, H, W), a multiply-add counted as 2."""
    return flops(_AtOneSigma(net), image_shape)


class _AtOneSigma(nn.Module):
    """A score model as a function of the image alone."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, noisy: Tensor) -> Tensor:
        """Any sigma costs the same."""
        noise: Tensor = self.net(noisy, 0.1)
        return noise
