"""S2AP: adversarial pruning whose scores are trained at their worst neighbours, so that the mask is stable."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import Array
from s2ap_train.attacks.weight_perturbation import relative_ascent
from s2ap_train.models.modes import batch_norm_statistics_frozen
from s2ap_train.pruning.mask_search import Moved, PrunedModel, ScoreLoss, Scores, search_masks
from s2ap_train.pruning.masks import Masks, flip_rate, layer_masks
from s2ap_train.training import OnEpoch, TrainingConfig

FLIP_BAND = (0.005, 0.02)  # fraction of kept weights that an automatic radius changes
_FIRST_RADIUS = 0.01
_FACTOR = 1.25
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class S2AP:
    """Hyper-parameters of `prune_s2ap`.

    `radius` is gamma, the length of the perturbation relative to each layer's scores; 0 is HYDRA, bit for bit; "auto"
    starts at 0.01 and follows the share of kept weights that the perturbation changes, to hold it in `FLIP_BAND`.
    """

    sparsity: float = 0.8
    radius: float | Literal["auto"] = "auto"
    warmup_epochs: int = 1
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=6, eps=0.15))

    def __post_init__(self) -> None:
        """Refuse a radius or warm-up that means nothing.

        Raises:
            RecipeError: If the radius is neither "auto" nor a number from 0, or the warm-up is negative.
        """
        if isinstance(self.radius, str) and self.radius != "auto":
            raise RecipeError(f'radius is {self.radius!r}; give a number from 0 or "auto"')
        if (not isinstance(self.radius, str) and self.radius < 0) or self.warmup_epochs < 0:
            raise RecipeError(f"radius {self.radius} and warmup_epochs {self.warmup_epochs} must not be negative")


class ScoreAscent:
    """The inner maximisation: one normalised step of the scores up the loss, on the batch's own examples.

    z_l = gamma * ||s_l||_2 * g_l / (||g_l||_2 + 1e-12) for each layer l, g_l the straight-through gradient at the
    scores. The only state is the radius, which moves when it is automatic.
    """

    def __init__(self, config: S2AP) -> None:
        self._automatic = config.radius == "auto"
        self.radius = _FIRST_RADIUS if isinstance(config.radius, str) else config.radius
        self._warmup_epochs = config.warmup_epochs
        self._keep_ratio = 1 - config.sparsity

    def __call__(self, epoch: int, model: nn.Module, scores: Scores, masks: Masks, loss: ScoreLoss) -> Moved | None:
        """Move the scores; statistics of batch normalisation stay as they are."""
        if epoch < self._warmup_epochs or self.radius == 0:
            return None
        with batch_norm_statistics_frozen(model):
            gradients = torch.autograd.grad(loss(masks), list(scores.values()))
        radius = self.radius
        start = [s.detach() for s in scores.values()]
        steps = relative_ascent(start, gradients, radius)
        with torch.no_grad():
            for s, step in zip(scores.values(), steps, strict=True):
                s.add_(step)
        moved = layer_masks(scores, self._keep_ratio)
        changed = flip_rate(masks, moved)
        if self._automatic:
            self.radius = next_radius(radius, changed)
        return Moved(moved, changed, radius)


def next_radius(radius: float, changed: float) -> float:
    """The automatic radius after a step that changed this fraction of the kept weights."""
    low, high = FLIP_BAND
    if changed < low:
        return radius * _FACTOR
    return radius / _FACTOR if changed > high else radius


def prune_s2ap(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: S2AP,
    *,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> PrunedModel:
    """Keep in every layer the weights of largest trained score, the scores trained against their worst perturbation.

    Score-space sharpness-aware adversarial pruning (arXiv 2510.18381) on HYDRA's scores: min over s of max over
    ||z_l|| <= gamma ||s_l|| of L(w * M(s + z)), after `warmup_epochs` of plain HYDRA. One ascent step per batch re-uses
    its adversarial examples; the gradient is taken at s + z and applied at s. The inner step and its norm are inferred
    from adversarial weight perturbation, not taken from the authors' code.

    A radius so small that no mask changes is HYDRA in disguise: the history says how many weights change, and a warning
    is logged when none does. The result is meant to be fine-tuned (`finetune`). Arguments and errors as in
    `search_masks`.
    """
    ascent = ScoreAscent(config) if config.radius else None
    pruned = search_masks(
        model,
        images,
        labels,
        validation,
        config.training,
        sparsity=config.sparsity,
        seed=seed,
        perturbation=ascent,
        on_epoch=on_epoch,
    )
    if ascent is not None and not any(record["flip_rate"] for record in pruned.history):
        _LOG.warning(
            "S2AP changed no mask in %d epochs (radius %.3g, warm-up %d): this was HYDRA; raise radius or epochs",
            len(pruned.history),
            ascent.radius,
            config.warmup_epochs,
        )
    return pruned
