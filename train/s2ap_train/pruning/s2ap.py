"""S2AP: scores trained at their worst neighbours, so that the mask is stable; a plug-in of every mask search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.weight_perturbation import Norm, relative_ascent, within
from s2ap_train.models.modes import batch_norm_statistics_frozen
from s2ap_train.pruning.allocation import Allocation
from s2ap_train.pruning.masks import Masks, flip_rate
from s2ap_train.pruning.perturbation import Moved, ScoreLoss, Scores

_FIRST_RADIUS = 0.01
_FACTOR = 1.25


@dataclass(frozen=True)
class S2AP:
    """Hyper-parameters of the perturbation of scores.

    Score-space sharpness-aware adversarial pruning (arXiv 2510.18381), on top of a method that trains scores (HYDRA,
    HARP, Robust Scratch Tickets): min over s of max over ||z_l|| <= radius * ||s_l|| of L(w * M(s + z)). The inner step
    and its norm are inferred from adversarial weight perturbation, not taken from the authors' code.

    Attributes:
        radius: gamma, relative to each layer's scores; 0 is the method itself, bit for bit; "auto" starts at 0.01 and
            follows the share of kept weights that the perturbation changes, to hold it in `flip_band`.
        flip_band: That share's lower and upper end for an automatic radius.
        norm: Ball of the perturbation: 'l2', 'linf', or 'adaptive' (in units of each score).
        ascent_steps: Steps to its worst point; each costs one forward and backward pass, the attack is not repeated.
        warmup_epochs: Epochs of the plain method before the perturbation starts.
    """

    radius: float | Literal["auto"] = "auto"
    flip_band: tuple[float, float] = (0.005, 0.02)
    norm: Norm = "l2"
    ascent_steps: int = 1
    warmup_epochs: int = 1

    def __post_init__(self) -> None:
        """Refuse a perturbation that means nothing.

        Raises:
            RecipeError: With the setting and what it may be.
        """
        if isinstance(self.radius, str) and self.radius != "auto":
            raise RecipeError(f'radius is {self.radius!r}; give a number from 0 or "auto"')
        refused = not isinstance(self.radius, str) and not (math.isfinite(self.radius) and self.radius >= 0)
        if refused or self.warmup_epochs < 0:
            raise RecipeError(
                f"radius {self.radius} and warmup_epochs {self.warmup_epochs} must be finite and must not be negative"
            )
        if self.norm not in ("l2", "linf", "adaptive"):
            raise RecipeError(f"norm is {self.norm!r}; choose from l2, linf, adaptive")
        if self.ascent_steps < 1:
            raise RecipeError(
                f"ascent_steps is {self.ascent_steps}; it must be at least 1 (radius = 0 switches S2AP off)"
            )
        low, high = self.flip_band
        if not 0 < low < high <= 1:
            raise RecipeError(f"flip_band is {self.flip_band}; it must be two rising shares in (0, 1]")


class ScoreAscent:
    """The inner maximisation: normalised steps of the scores up the loss, on the batch's own examples.

    One step: z_l = gamma * ||s_l||_2 * g_l / (||g_l||_2 + 1e-12) for each layer l, g_l the straight-through gradient at
    the scores. K steps go gamma / K each, with the gradient where they stand, and are projected onto the ball. The only
    state is the radius, which moves when it is automatic. Learned quotas are not moved.

    Args:
        config: Hyper-parameters.
        allocation: Cuts the moved scores.
    """

    def __init__(self, config: S2AP, allocation: Allocation) -> None:
        self._config, self._allocation = config, allocation
        self.radius = _FIRST_RADIUS if isinstance(config.radius, str) else config.radius

    def __call__(self, epoch: int, model: nn.Module, scores: Scores, masks: Masks, loss: ScoreLoss) -> Moved | None:
        """Move the scores; statistics of batch normalisation stay as they are."""
        config = self._config
        if epoch < config.warmup_epochs or self.radius == 0:
            return None
        start = [s.detach().clone() for s in scores.values()]
        offsets = [torch.zeros_like(s) for s in start]
        moved = dict(masks)
        for _ in range(config.ascent_steps):
            with batch_norm_statistics_frozen(model):
                gradients = loss.gradients(moved, list(scores.values()))
            steps = relative_ascent(start, gradients, self.radius / config.ascent_steps, config.norm)
            offsets = [self._within(z + step, s) for z, step, s in zip(offsets, steps, start, strict=True)]
            with torch.no_grad():
                for s, origin, offset in zip(scores.values(), start, offsets, strict=True):
                    s.copy_(origin + offset)
            moved = self._allocation.masks(scores)
        changed, radius = flip_rate(masks, moved), self.radius
        if config.radius == "auto":
            self.radius = next_radius(radius, changed, config.flip_band)
        return Moved(moved, changed, radius)

    def _within(self, offset: Tensor, scores: Tensor) -> Tensor:
        if self._config.ascent_steps == 1:
            return offset
        return within(offset, scores, self.radius, self._config.norm)


def next_radius(radius: float, changed: float, band: tuple[float, float]) -> float:
    """The automatic radius after a step that changed this fraction of the kept weights."""
    low, high = band
    if changed < low:
        return radius * _FACTOR
    return radius / _FACTOR if changed > high else radius
