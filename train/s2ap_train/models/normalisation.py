"""What a network of the user's wants its pixels to be: a mean subtracted and a deviation divided by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError

__all__ = ["Normalisation"]


class Normalisation(nn.Module):
    """(pixels - mean) / std by channel; it has no weights, and none of its numbers are in a state_dict."""

    shift: Tensor
    scale: Tensor

    def __init__(self, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Check the numbers.

        Args:
            channels: Of an image.
            mean: One number a channel or one for all; None: 0.
            std: The same; None: 1.

        Raises:
            RecipeError: If they are not finite or not as many as channels, a deviation is not above 0, or a mean is one
                of pixels up to 255.
        """
        super().__init__()
        self.mean, self.std = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
        self.register_buffer("shift", _buffer(self.mean, 0.0), persistent=False)
        self.register_buffer("scale", _buffer(self.std, 1.0), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0, 1], as the network wants them."""
        return images if self.mean is None and self.std is None else (images - self.shift) / self.scale

    def arguments(self) -> dict[str, Any]:
        """`mean` and `std` as JSON values, where they are given."""
        given = {"mean": self.mean, "std": self.std}
        return {name: list(values) for name, values in given.items() if values is not None}


def _per_channel(name: str, values: Sequence[float] | None, channels: int) -> tuple[float, ...] | None:
    if values is None:
        return None
    numbers = tuple(float(value) for value in values)
    if len(numbers) not in {1, channels} or not all(map(math.isfinite, numbers)):
        raise RecipeError(f"{name} is {list(numbers)}; give one finite number for each of {channels} channels, or one")
    if name == "std" and min(numbers) <= 0:
        raise RecipeError(f"std is {list(numbers)}; pixels are divided by it, so every number must be above 0")
    if name == "mean" and max(map(abs, numbers)) > 1:
        raise RecipeError(f"mean is {list(numbers)}, but pixels are in [0, 1]; divide mean and std by 255")
    return numbers


def _buffer(values: tuple[float, ...] | None, default: float) -> Tensor:
    return torch.tensor((default,) if values is None else values).reshape(1, -1, 1, 1)
