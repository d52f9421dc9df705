"""What all trainable classifiers share: sizes, initial weights, and a description that rebuilds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

ImageSize = int | Sequence[int]
"""Pixels of a side of a square image, or (height, width); records hold an int or a list of two."""


class Classifier(nn.Module):
    """A network from images [N, C, H, W] in [0, 1] to logits [N, K]; the normalisation of pixels is inside.

    Attributes:
        in_channels: Channels C of an image.
        classes: Number of classes K.
        image_size: (height, width) of an image, pixels; one int for a square image.
        channels: Channels that are left in each channel group after some were removed; None = none were.
    """

    in_channels: int
    classes: int
    image_size: int | tuple[int, int]
    channels: Mapping[str, int] | None

    def __init__(self, in_channels: int, classes: int, image_size: ImageSize) -> None:
        """Note the sizes.

        Raises:
            ValueError: If one is below 1, or `image_size` is neither one number nor two.
        """
        super().__init__()
        height, width = image_sides(image_size)
        if min(in_channels, classes, height, width) < 1:
            raise ValueError(
                f"got in_channels {in_channels}, classes {classes}, image_size {image_size}; every size must be at "
                "least 1"
            )
        self.in_channels, self.classes = in_channels, classes
        self.image_size = height if height == width else (height, width)
        self.channels = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W] in [0, 1]."""
        raise NotImplementedError  # an abstract method; nn.Module and ABC do not mix

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found about it that whoever starts a run should know, as sentences."""
        return ()

    @property
    def without_gradients(self) -> str:
        """What of it has no gradient here, so that those of a surrogate stand in; empty: its gradients are its own."""
        return ""

    def arguments(self) -> dict[str, Any]:
        """Name and arguments that make this network with all its channels, as JSON values."""
        raise NotImplementedError

    def architecture(self) -> dict[str, Any]:
        """What `s2ap_train.models.build` needs to rebuild this network, as JSON values; weights are not part of it."""
        return self.arguments() | ({} if self.channels is None else {"channels": dict(self.channels)})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.in_channels, *image_sides(self.image_size)

    @property
    def recorded_size(self) -> int | list[int]:
        """`image_size` as a JSON value: one number for a square image, [height, width] otherwise."""
        return self.image_size if isinstance(self.image_size, int) else list(self.image_size)


class ScaledClassifier(Classifier):
    """A published network with a factor for its channels; `name` is what architectures call it."""

    name: ClassVar[str]

    def __init__(
        self, in_channels: int = 3, classes: int = 10, image_size: ImageSize = 32, *, width: float = 1.0, seed: int = 0
    ) -> None:
        """Build and initialise the network.

        Args:
            in_channels: Channels of an image.
            classes: Number of classes K.
            image_size: Side of a square image, or (height, width), pixels.
            width: Factor of the published channels, see `scaled_channels`.
            seed: Seed of the initial weights; the global random state is neither used nor changed.

        Raises:
            ValueError: If a size is below 1 or the width is not above 0.
        """
        super().__init__(in_channels, classes, image_size)
        self.width = width
        with torch.random.fork_rng(devices=[]):  # layer constructors draw from the global generator: give it back
            self.build()
        initialise(self, seed)
        self.to(memory_format=torch.channels_last)  # a quarter faster on a CPU

    def build(self) -> None:
        """Make the layers."""
        raise NotImplementedError

    def scaled(self, channels: int) -> int:
        """Published channels times the width factor."""
        return scaled_channels(channels, self.width)

    def arguments(self) -> dict[str, Any]:
        """Name and arguments that make this network with all its channels, as JSON values."""
        return {
            "name": self.name,
            "in_channels": self.in_channels,
            "classes": self.classes,
            "image_size": self.recorded_size,
            "width": self.width,
        }


def image_sides(image_size: ImageSize) -> tuple[int, int]:
    """(height, width) of images whose size is one number or two.

    Raises:
        ValueError: If it is neither.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or not all(type(side) is int for side in sides):
        raise ValueError(
            f"image_size is {image_size!r}; give one whole number for square images, or [height, width] in pixels"
        )
    return sides[0], sides[1]


def scaled_channels(channels: int, width: float) -> int:
    """Channels times a width factor, to the nearest multiple of 8; below 8 to the nearest whole number, at least 1.

    Raises:
        ValueError: Unless the factor is above 0.
    """
    if not width > 0:
        raise ValueError(f"width is {width}; the factor of the channels must be above 0 (1 = as published)")
    exact = channels * width
    eights = 8 * int(exact / 8 + 0.5)
    return eights if exact >= 8 else max(1, int(exact + 0.5))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The 1x1 convolution of a residual block's shortcut, pixels taken out before it instead of by its stride.

    The same function: [N, I, H, W] -> [N, O, ceil(H/stride), ceil(W/stride)]. The weight gradient of a strided 1x1
    convolution with fewer than 16 inputs crashes the process for some batch sizes in torch 2.15 on a CPU with two or
    more threads (channels last).
    """
    return nn.Sequential(nn.MaxPool2d(1, stride), nn.Conv2d(inputs, outputs, 1, bias=False))


def initialise(module: nn.Module, seed: int) -> None:
    """Draw the weights of convolutions and linear layers anew from `seed`.

    Convolutions are He-initialised (He et al. 2015, fan-in, ReLU), linear layers uniform within 1/sqrt(fan-in); biases
    are 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
