"""A defence with a known answer: what a purifier does to it can be worked out by hand.

Images are 1x4x4. The classifier reads the upper half alone: class 1 where its mean is above 0.5. The lower half is
0.1 in class 0 and 0.9 in class 1, out of reach of an attack; a denoiser that reads it knows the class.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softshrink

from s2ap_train.data import ImageSet
from s2ap_train.purifier import Purification

EPS = 0.1
STRONG = Purification(sigma=0.05, radius=0.3, steps=1, step_size=0.7, rho=0.0, mode="j_free", bank_size=2)
"""Moves the upper half by 0.3 towards what the denoiser says: more than margin and attack together."""


def upper_half(images: Tensor) -> Tensor:
    """Logits [N, 2] of the classifier."""
    mean = images[:, :, :2].mean(dim=(1, 2, 3))
    return 20.0 * torch.stack([0.5 - mean, mean - 0.5], dim=1)


@dataclass(frozen=True)
class Denoiser:
    """Says that the whole image is white or black, by its lower half.

    Attributes:
        honest: Whether it says the true class; otherwise the other one.
    """

    honest: bool

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        """The noise in y [B, 1, 4, 4]: (y - D(y)) / sigma."""
        sign = 1.0 if self.honest else -1.0
        white = torch.sigmoid(sign * 20.0 * (y[:, :, 2:].mean(dim=(1, 2, 3)) - 0.5))
        return (y - white[:, None, None, None]) / sigma


@dataclass(frozen=True)
class Threshold:
    """Says as `Denoiser` what the lower half says, but by a threshold: its gradient is 0 wherever it has one."""

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        """The noise in y [B, 1, 4, 4]."""
        white = (y[:, :, 2:].mean(dim=(1, 2, 3)) > 0.5).to(y)
        return (y - white[:, None, None, None]) / sigma


def both_halves(images: Tensor) -> Tensor:
    """Logits [N, 2] of a classifier that reads the lower half only where it is almost black or white.

    Purified images are; so only who asks for the gradient there learns that the lower half counts.
    """
    upper, lower = images[:, :, :2].mean(dim=(1, 2, 3)) - 0.5, images[:, :, 2:].mean(dim=(1, 2, 3)) - 0.5
    said = 20.0 * (upper + softshrink(lower, 0.3))
    return torch.stack([-said, said], dim=1)


def two_halves(margin: float | tuple[float, ...], count: int = 12, *, lower: float = 0.4) -> ImageSet:
    """Both classes in turn; the mean of the upper half is `margin` on the right side of 0.5, of the lower `lower`.

    Of several margins each is that of as many pairs of images.
    """
    labels = np.arange(count) % 2
    margins = np.resize(np.repeat(margin, 2), count)
    images = np.empty((count, 1, 4, 4), dtype=np.float32)
    images[:, :, :2] = (0.5 + margins * (2 * labels - 1))[:, None, None, None]
    images[:, :, 2:] = (0.5 + lower * (2 * labels - 1))[:, None, None, None]
    return ImageSet(images, labels)
