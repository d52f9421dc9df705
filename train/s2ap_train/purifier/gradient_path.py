"""Which gradient an attacker takes past a purifier, whatever that is made of: one place decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["GradientPath", "Images", "bpda", "pass_through", "purified"]

GradientPath = Literal["none", "identity", "exact", "straight_through", "surrogate"]
"""How gradients pass a purifier; see `purified`."""

Images = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] in [0, 1] -> the same."""


def purified(
    images: Tensor, path: GradientPath, *, exact: Images, straight_through: Images, surrogate: Images | None
) -> Tensor:
    """Images behind a purifier [B, C, H, W]; the path decides what their gradient is, and, but for 'none', not more.

    'none': the purifier is not asked, the images come back. 'identity': the gradient as if it changed nothing.
    'exact': through every step. 'straight_through': the same past clamps and rounding, which have no gradient.
    'surrogate': that of its J-free form, which differentiates no score model twice.

    Args:
        images: Images [B, C, H, W] in [0, 1].
        path: The gradient that is taken.
        exact: The purifier.
        straight_through: The same values; clamps and rounding pass gradients on unchanged.
        surrogate: The same values, the gradient of the J-free form; None: there is none.

    Raises:
        ValueError: For 'surrogate' where there is none: a model file holds the purifier alone.
    """
    match path:
        case "none":
            return images
        case "identity":
            return bpda(torch.no_grad()(exact), images)
        case "exact":
            return exact(images)
        case "straight_through":
            return straight_through(images)
        case "surrogate":
            if surrogate is None:
                raise ValueError("the file holds no J-free form of its purifier; attack it by another path")
            return surrogate(images)


def bpda(function: Images, images: Tensor) -> Tensor:
    """What a function makes of images, with the gradient of the images themselves.

    Backward pass differentiable approximation (Athalye et al. 2018, arXiv 1802.00420, section 4.1).
    """
    return pass_through(function(images.detach()), images)


def pass_through(value: Tensor, like: Tensor) -> Tensor:
    """The value, to the bit where `like` is finite, with the gradient of `like` (of the same shape)."""
    return value.detach() + (like - like.detach())
