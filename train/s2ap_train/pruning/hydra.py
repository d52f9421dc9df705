"""HYDRA: pruning by scores that are trained against the attack."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from s2ap_train.attacks.accuracy import Array
from s2ap_train.pruning.mask_search import PrunedModel, search_masks
from s2ap_train.training import OnEpoch, TrainingConfig


@dataclass(frozen=True)
class Hydra:
    """Hyper-parameters of `prune_hydra`; `training` is that of the scores."""

    sparsity: float = 0.8
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=6, eps=0.15))


def prune_hydra(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: Hydra,
    *,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> PrunedModel:
    """Keep in every layer the weights whose trained scores are largest in size.

    Sehwag et al. 2020 (arXiv 2002.10509), with PGD adversarial training as the robust loss: scores start at the scaled
    weights, so at first the mask is that of the largest weights, and learn by straight-through gradients. Arguments and
    errors as in `search_masks`. The result is meant to be fine-tuned.
    """
    return search_masks(
        model, images, labels, validation, config.training, sparsity=config.sparsity, seed=seed, on_epoch=on_epoch
    )
