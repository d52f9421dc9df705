"""Purifiers of others, restated for comparison: what each does to images, as plain functions.

Adam descent stands for ScoreOpt (Zhang, Luo, Zhang, NeurIPS 2023, arXiv 2307.04333) and for Likelihood Maximisation
(Chen et al., ICML 2024, arXiv 2305.15241); both descend with Adam on ||D(x + sigma e) - x||^2. Squeezing is from Xu,
Evans, Qi (NDSS 2018, arXiv 1704.01155), JPEG from Dziugaite et al. (2016, arXiv 1608.00853). Nothing is copied, no
published figure is reproduced here, and results carry '-style' in their names where details differ.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from s2ap_defend.errors import InputError, RecipeError
from s2ap_train.purifier.gradient_path import pass_through
from s2ap_train.purifier.purify import Score, field

__all__ = ["AdamDescent", "adam_purify", "jpeg_round_trip", "squeeze_bits", "stratified_levels", "uniform_levels"]

BETA1, BETA2 = 0.9, 0.999  # Kingma, Ba 2015 (arXiv 1412.6980), as both papers have them
ADAM_FLOOR = 1e-16  # under the root: their 1e-8 next to it, squared, so that a zero gradient has a derivative
_JPEG_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class AdamDescent:
    """Adam on E with fixed noise; lengths in [0, 1] pixels.

    Attributes:
        levels: Noise level sigma of every step.
        step_size: Adam's learning rate: about how far each pixel moves in the first step.
        radius: Radius of the l_inf ball about the input that every step is projected onto; None is no ball.
        draws: Noise directions over which each step averages.
        seed: Of the noise, which is another one in every step, and the same for every image and in every call.
    """

    levels: tuple[float, ...]
    step_size: float
    radius: float | None = None
    draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot descend.

        Raises:
            RecipeError: If there is no step, or a length or count is out of range.
        """
        lengths = (*self.levels, self.step_size, *(() if self.radius is None else (self.radius,)))
        if not self.levels or self.draws < 1 or not all(0 < length < math.inf for length in lengths):
            raise RecipeError(
                f"this cannot purify: {self}; at least one step and one draw, and levels, step_size and radius "
                "above 0 and finite"
            )

    def noise(self, shape: tuple[int, int, int]) -> Tensor:
        """Standard normal noise of all steps, float32 [K, M, C, H, W]."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn((len(self.levels), self.draws, *shape), generator=generator)


def adam_purify(net: Score, x: Tensor, noise: Tensor, config: AdamDescent, *, straight_through: bool = False) -> Tensor:
    """Descend with Adam on E, unrolled, so that attacks can differentiate through every step.

    The field is the exact half gradient of the error summed over each image: Adam does not see its scale. Averages of
    the gradient and of its square are kept per image and pixel, so images do not depend on each other.

    Beware of this gradient: the first step of Adam is the sign of the field, which has no gradient of its own, and
    where the field is near zero that of later steps is large. An attack on it must also try simpler ones.

    Args:
        net: The score model, in evaluation mode.
        x: Images [B, C, H, W] in [0, 1].
        noise: Of every step [K, M, C, H, W], from `config.noise`, on the device and of the type of the images.
        config: Hyper-parameters.
        straight_through: Let gradients pass the projections unchanged; the values are the same.

    Returns:
        Images [B, C, H, W] in [0, 1], in the ball about x if there is one.
    """
    z = x
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    for step, sigma in enumerate(config.levels, start=1):
        gradient, _ = field(net, z, sigma, noise[step - 1], "full")
        mean = BETA1 * mean + (1 - BETA1) * gradient
        square = BETA2 * square + (1 - BETA2) * gradient.square()
        direction = (mean / (1 - BETA1**step)) / (square / (1 - BETA2**step) + ADAM_FLOOR).sqrt()
        z = z - config.step_size * direction
        if config.radius is not None:
            inside = x + (z - x).clamp(-config.radius, config.radius)
            z = pass_through(inside, z) if straight_through else inside
    return pass_through(z.clamp(0, 1), z) if straight_through else z.clamp(0, 1)


def uniform_levels(low: float, high: float, steps: int, seed: int) -> tuple[float, ...]:
    """Noise levels drawn uniformly from [low, high], one for each step."""
    return tuple(np.random.default_rng(seed).uniform(low, high, max(steps, 0)).tolist())


def stratified_levels(low: float, high: float, steps: int, seed: int) -> tuple[float, ...]:
    """Noise levels log-uniform on [low, high], one in each of `steps` equal parts, in random order.

    Raises:
        RecipeError: Unless 0 < low <= high.
    """
    if not 0 < low <= high < math.inf:
        raise RecipeError(f"need 0 < sigma_min <= sigma_max, found {low} and {high}")
    random = np.random.default_rng(seed)
    places = (random.permutation(max(steps, 0)) + random.random(max(steps, 0))) / max(steps, 1)
    return tuple((low * (high / low) ** places).tolist())


def squeeze_bits(x: Tensor, bits: int) -> Tensor:
    """Round pixels to 2 ** bits values; the gradient is zero wherever there is one."""
    highest = 2**bits - 1
    rounded: Tensor = torch.round(x * highest) / highest
    return rounded


def jpeg_round_trip(x: Tensor, quality: int) -> Tensor:
    """Images [B, C, H, W] in [0, 1] through baseline JPEG files (Pillow: libjpeg, colour halved to 4:2:0); no gradient.

    Raises:
        InputError: Unless there are 1 or 3 channels.
    """
    channels = x.shape[1]
    if channels not in _JPEG_MODES:
        raise InputError(f"JPEG stores images of 1 or 3 channels, found {channels}; leave this variant out")
    pixels = (x.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    decoded = [_through_a_file(image, channels, quality) for image in pixels]
    stacked = np.stack(decoded) if decoded else pixels
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).to(x) / 255


def _through_a_file(pixels: np.ndarray, channels: int, quality: int) -> np.ndarray:
    """One image, uint8 [H, W, C] -> the same."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return np.asarray(decoded.convert(_JPEG_MODES[channels])).reshape(pixels.shape)
