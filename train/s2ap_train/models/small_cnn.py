"""A small convolutional classifier: the network of the digits recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_train.models.classifier import Classifier, ImageSize, image_sides, initialise, scaled_channels

NAME = "small_cnn"
_TWO_POOLS = 64  # side of the largest square image, pixels


class Block(nn.Module):
    """Convolution 3x3, batch normalisation, ReLU, and a 2x2 max-pool if asked: [N, I, H, W] -> [N, O, H', W']."""

    def __init__(self, inputs: int, outputs: int, *, pool: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Apply the block."""
        pooled: Tensor = self.pool(torch.relu(self.norm(self.convolution(features))))
        return pooled


def default_pools(blocks: int, image_size: ImageSize) -> tuple[int, ...]:
    """Blocks after which a network of this depth pools: two of them, in the middle; six blocks pool after 2 and 4.

    Pooling late costs time and buys robustness: the first blocks of an adversarially trained network need all pixels.
    Beyond 64x64 pixels every doubling of both sides adds a pool, in an earlier block as long as there are some: six
    blocks pool after 1, 2 and 4 up to 128x128 and after 0, 1, 2 and 4 up to 256x256.
    """
    first = max(0, (blocks - 2) // 2)
    middle = (first, first + max(1, round(blocks / 3))) if blocks > 1 else (0,)
    more = math.ceil(math.log2(math.sqrt(math.prod(image_sides(image_size))) / _TWO_POOLS))
    spare = [block for block in (*reversed(range(first)), *range(first, blocks)) if block not in middle]
    return tuple(sorted((*middle, *spare[: max(0, more)])))


class SmallCNN(Classifier):
    """Blocks of convolution, then one linear layer: images [N, C, H, W] in [0, 1] -> logits [N, K].

    The normalisation of the pixels to [-1, 1] is inside. `widths` holds the channels of each block, so a network whose
    channels were removed is the same class with smaller widths. Weights are He-initialised from `seed`; the global
    random state is neither used nor changed.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 10,
        widths: Sequence[int] = (16, 16, 16, 32, 32, 64),
        image_size: ImageSize = 8,
        *,
        pool_after: Sequence[int] | None = None,
        width: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Build and initialise the network.

        Args:
            in_channels: Channels of an image.
            classes: Number of classes K.
            widths: Output channels of each block, first to last.
            image_size: Side of a square image, or (height, width), pixels.
            pool_after: Indices, from 0, of the blocks that end with a 2x2 max-pool; None = `default_pools`.
            width: Factor of `widths`, see `scaled_channels`; 1 takes them as they are.
            seed: Seed of the initial weights.

        Raises:
            ValueError: If a size is below one, `pool_after` names no block, or pooling leaves no pixel.
        """
        super().__init__(in_channels, classes, image_size)
        if min(len(widths), *widths) < 1:
            raise ValueError(f"SmallCNN got widths {tuple(widths)}; every size must be at least 1")
        widths = widths if width == 1 else [scaled_channels(channels, width) for channels in widths]
        pool_after = default_pools(len(widths), image_size) if pool_after is None else pool_after
        if any(not 0 <= block < len(widths) for block in pool_after):
            raise ValueError(f"pool_after is {tuple(pool_after)}; it must name blocks from 0 to {len(widths) - 1}")
        self.pool_after = tuple(sorted(set(pool_after)))
        sides = self.image_shape[1:]
        height, image_width = (side >> len(self.pool_after) for side in sides)
        if min(height, image_width) < 1:
            raise ValueError(
                f"{len(self.pool_after)} pools leave nothing of an image of {sides[0]}x{sides[1]} pixels, they need "
                f"{1 << len(self.pool_after)} a side; enlarge the images with data.image_size, or pool less often"
            )
        inputs = (in_channels, *widths[:-1])
        with torch.random.fork_rng(
            devices=[]
        ):  # layer constructors draw from the global generator: give it back untouched
            self.blocks = nn.ModuleList(
                Block(i, o, pool=n in self.pool_after) for n, (i, o) in enumerate(zip(inputs, widths, strict=True))
            )
            self.classifier = nn.Linear(widths[-1] * height * image_width, classes)
        initialise(self, seed)
        self.to(memory_format=torch.channels_last)  # a quarter faster on a CPU

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of each block, first to last, as they are now."""
        return tuple(block.convolution.out_channels for block in self.each_block())

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W] in [0, 1]."""
        features = images * 2 - 1
        for block in self.each_block():
            features = block(features)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits

    def each_block(self) -> list[Block]:
        """The blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def arguments(self) -> dict[str, Any]:
        """Name and arguments that make this network, as JSON values; `widths` are those that are left."""
        return {
            "name": NAME,
            "in_channels": self.in_channels,
            "classes": self.classes,
            "widths": list(self.widths),
            "image_size": self.recorded_size,
            "pool_after": list(self.pool_after),
        }

    def architecture(self) -> dict[str, Any]:
        """As `arguments`: widths say it all, also after channels were removed."""
        return self.arguments()
