"""The score model: a small U-Net that predicts the noise in an image.

It decides which operators an exported purifier contains, so it is built from convolutions, group normalisation and
SiLU alone: smooth everywhere (a ReLU would mask gradients), every image on its own (batch normalisation would not).
Resolution changes by 2x2 convolutions of stride 2 and their transposes, each the other's gradient. A fold makes
channels of squares of pixels before all this, so that large images cost no more a pixel than small ones. Images of any
height and width are padded inside to sides that can be folded and halved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from s2ap_defend.errors import RecipeError
from s2ap_train.purifier.blocks import CHANNELS_PER_GROUP, Blocks, ModulatedNorm, ResidualBlock

__all__ = ["NAME", "UNet", "build", "padded_sides"]

NAME = "unet"


class UNet(nn.Module):
    """Predicts standard normal noise e from y = x + sigma e: net(y, sigma) -> [B, C, H, W].

    Around the network F lies the preconditioning of Karras et al. 2022 (arXiv 2206.00364, table 1), written for
    noise: e = a (y - mean) + b F(y), where the first term is the best linear guess for pixels of `data_mean` and
    `data_std`, and F has to explain the rest, which has unit variance. Skip connections add (they do not concatenate).
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 16,
        multipliers: Sequence[int] = (1, 2),
        fold: int = 1,
        *,
        blocks: Blocks = "full",
        data_mean: float = 0.5,
        data_std: float = 0.5,
        seed: int = 0,
    ) -> None:
        """Build and initialise the network; the global random state is neither used nor changed.

        Args:
            in_channels: Channels of an image.
            width: Channels of the first level, a multiple of 8.
            multipliers: Channels of each level in units of `width`; every level after the first halves the resolution.
            fold: Squares of fold x fold pixels become channels (pixel-unshuffle) before the first level, and pixels
                again behind the last; 1 folds nothing.
            blocks: The convolutions of the residual blocks: 'full' or 'separable'.
            data_mean: Mean of the pixels of the data.
            data_std: Their standard deviation.
            seed: Seed of the initial weights.

        Raises:
            ValueError: If a size is below one, `width` is no multiple of 8, `blocks` is unknown, or `data_std` is not
                positive.
        """
        super().__init__()
        multipliers = tuple(multipliers)
        if min(in_channels, width, fold) < 1 or width % CHANNELS_PER_GROUP or min(multipliers, default=0) < 1:
            raise ValueError(
                f"a UNet needs channels, a width that is a multiple of {CHANNELS_PER_GROUP}, multipliers and a fold of "
                f"1 or more; found {in_channels} channels, width {width}, multipliers {multipliers}, fold {fold}"
            )
        if blocks not in get_args(Blocks):
            raise ValueError(f"blocks {blocks!r} are not known; choose from {', '.join(get_args(Blocks))}")
        if not data_std > 0:
            raise ValueError(f"data_std must be positive, found {data_std}; the images may all be constant")
        self.in_channels, self.width, self.multipliers, self.fold = in_channels, width, multipliers, fold
        self.blocks = blocks
        self.data_mean, self.data_std = data_mean, data_std
        embedding, folded = 4 * width, in_channels * fold**2
        widths = [width * multiplier for multiplier in multipliers]
        steps = list(itertools.pairwise(widths))
        with torch.random.fork_rng(devices=[]):  # layer constructors draw from the global generator
            torch.default_generator.manual_seed(seed)
            self.embedding = nn.Sequential(
                nn.Linear(2 * width, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
            )
            self.head = nn.Conv2d(folded, width, 3, padding=1)
            self.down_blocks = nn.ModuleList(ResidualBlock(c, embedding, blocks) for c in widths)
            self.downs = nn.ModuleList(nn.Conv2d(i, o, 2, stride=2) for i, o in steps)
            self.middle = ResidualBlock(widths[-1], embedding, blocks)
            self.ups = nn.ModuleList(nn.ConvTranspose2d(o, i, 2, stride=2) for i, o in steps)
            self.up_blocks = nn.ModuleList(ResidualBlock(c, embedding, blocks) for c in widths)
            self.tail_norm = ModulatedNorm(width, embedding)
            self.tail = nn.Conv2d(width, folded, 3, padding=1)
        self._damp()

    def _damp(self) -> None:
        """Start as the identity: no modulation, no residual branch, no noise beyond the linear guess."""
        for module in self.modules():
            if isinstance(module, ModulatedNorm):
                module.modulation.weight.data.mul_(0.1)
                nn.init.zeros_(module.modulation.bias)
            elif isinstance(module, ResidualBlock):
                module.silence()
        nn.init.zeros_(self.tail.weight)
        if self.tail.bias is not None:
            nn.init.zeros_(self.tail.bias)

    def forward(self, noisy: Tensor, sigma: Tensor | float) -> Tensor:
        """Predict the noise.

        Args:
            noisy: y = x + sigma e [B, C, H, W], x in [0, 1].
            sigma: Standard deviation of the noise in pixels: one number, or one per image [B].

        Returns:
            Prediction of e, unit variance, [B, C, H, W].
        """
        sigma = torch.as_tensor(sigma, dtype=noisy.dtype, device=noisy.device).reshape(-1)  # [1 or B]
        embedding = self.embedding(self._frequencies(sigma))
        total = (sigma.square() + self.data_std**2)[:, None, None, None]
        centred = noisy - self.data_mean
        features = self.head(_folded(_padded(centred, self.multiple), self.fold))
        skips: list[Tensor] = []
        for level, block in enumerate(self.down_blocks):
            if level > 0:
                features = self.downs[level - 1](features)
            features = block(features, embedding)
            skips.append(features)
        features = self.middle(features, embedding)
        for level in reversed(range(len(skips))):
            features = self.up_blocks[level](features + skips[level], embedding)
            if level > 0:
                features = self.ups[level - 1](features)
        rest = _unfolded(self.tail(silu(self.tail_norm(features, embedding))), self.fold)
        rest = rest[:, :, : noisy.shape[2], : noisy.shape[3]]
        noise: Tensor = centred * (sigma[:, None, None, None] / total) + rest * (self.data_std * total.rsqrt())
        return noise

    def _frequencies(self, sigma: Tensor) -> Tensor:
        """Sines and cosines of ln(sigma) at octaves [B, 2 * width]: four waves or fewer over a factor e of sigma."""
        octaves = torch.arange(self.width, dtype=sigma.dtype, device=sigma.device) / self.width
        angles = sigma.log()[:, None] * (0.25 * math.tau * 16.0**octaves)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    @property
    def multiple(self) -> int:
        """Pixels to a multiple of which both sides of an image are padded."""
        return int(self.fold * 2 ** (len(self.multipliers) - 1))

    def architecture(self) -> dict[str, Any]:
        """What `build` needs to rebuild this network, as JSON values; weights are not part of it.

        `fold` is there where it is not 1, `blocks` where they are not full.
        """
        known = {
            "name": NAME,
            "in_channels": self.in_channels,
            "width": self.width,
            "multipliers": list(self.multipliers),
            "data_mean": self.data_mean,
            "data_std": self.data_std,
        }
        return (
            known
            | ({} if self.fold == 1 else {"fold": self.fold})
            | ({} if self.blocks == "full" else {"blocks": self.blocks})
        )


def padded_sides(sides: Sequence[int], multiple: int) -> tuple[int, ...]:
    """Sides in pixels, each enlarged to a multiple."""
    return tuple(side + -side % multiple for side in sides)


def _padded(images: Tensor, multiple: int) -> Tensor:
    """Images [B, C, H, W] with rows and columns of zeros behind the last, up to multiples."""
    for axis in (2, 3):
        sizes = list(images.shape)
        sizes[axis] = -sizes[axis] % multiple
        if sizes[axis]:
            images = torch.cat([images, images.new_zeros(sizes)], dim=axis)
    return images


def _folded(images: Tensor, fold: int) -> Tensor:
    """Pixel-unshuffle, [B, C, H, W] -> [B, C fold^2, H / fold, W / fold], in operators that a graph has."""
    if fold == 1:
        return images
    count, channels, height, width = images.shape
    squares = images.reshape(count, channels, height // fold, fold, width // fold, fold)
    return squares.permute(0, 1, 3, 5, 2, 4).reshape(count, channels * fold**2, height // fold, width // fold)


def _unfolded(features: Tensor, fold: int) -> Tensor:
    """The inverse of `_folded`: pixel-shuffle."""
    if fold == 1:
        return features
    count, channels, height, width = features.shape
    squares = features.reshape(count, channels // fold**2, fold, fold, height, width)
    return squares.permute(0, 1, 4, 2, 5, 3).reshape(count, channels // fold**2, height * fold, width * fold)


def build(architecture: Mapping[str, Any], *, seed: int = 0) -> UNet:
    """The network that `architecture()` described, with fresh weights from `seed`.

    Raises:
        RecipeError: If the name is unknown, or the other keys are not the arguments of that network.
    """
    arguments = dict(architecture)
    name = arguments.pop("name", None)
    if name != NAME:
        raise RecipeError(f"unknown score model {name!r}; expected {NAME!r}")
    try:
        return UNet(**arguments, seed=seed)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"score model {name!r} cannot be built from {arguments}: {error}") from error
