"""Blocks of the score model: a norm that depends on sigma, residual blocks of full or separable convolutions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import group_norm, silu

__all__ = ["CHANNELS_PER_GROUP", "Blocks", "ModulatedNorm", "ResidualBlock"]

Blocks = Literal["full", "separable"]
"""How the 3x3 convolutions of residual blocks are computed."""
CHANNELS_PER_GROUP = 8
NORM_EPS = 1e-5


class ModulatedNorm(nn.Module):
    """Group normalisation whose scale and shift depend on the embedding of sigma.

    With a constant sigma both are constants, so an exported graph multiplies and adds once.
    """

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.groups = channels // CHANNELS_PER_GROUP
        self.modulation = nn.Linear(embedding, 2 * channels)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Normalise features [B, C, H, W] and modulate them by the embedding [1 or B, E]."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        modulated: Tensor = group_norm(features, self.groups, eps=NORM_EPS) * (1 + scale) + shift
        return modulated


class ResidualBlock(nn.Module):
    """Convolution 3x3, norm, SiLU, convolution 3x3, added to the input: [B, C, H, W] -> the same.

    Args:
        channels: C, a multiple of 8.
        embedding: Numbers of the embedding of sigma.
        blocks: 'separable' replaces each convolution by one of every channel alone and one over a pixel (Howard et al.
            2017, arXiv 1704.04861), nothing between them: about 9 C / (C + 9) times less work.
    """

    def __init__(self, channels: int, embedding: int, blocks: Blocks = "full") -> None:
        super().__init__()
        self.convolution1 = _convolution(channels, blocks)
        self.norm = ModulatedNorm(channels, embedding)
        self.convolution2 = _convolution(channels, blocks)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block."""
        hidden = silu(self.norm(self.convolution1(features), embedding))
        result: Tensor = features + self.convolution2(hidden)
        return result

    def silence(self) -> None:
        """Let the block be the identity at first."""
        last = self.convolution2[-1] if isinstance(self.convolution2, nn.Sequential) else self.convolution2
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]


def _convolution(channels: int, blocks: Blocks) -> nn.Conv2d | nn.Sequential:
    """A 3x3 convolution that keeps channels and size."""
    if blocks == "full":
        return nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False), nn.Conv2d(channels, channels, 1)
    )
