"""FlyingBird: adversarial training of a sparse network whose connections move while it trains.

Chen et al. 2022, "Sparsity Winning Twice" (arXiv 2202.09844). Values called published are the defaults of the authors'
program; where it chooses weights by thresholds and probabilities, the counts here are exact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import Array
from s2ap_train.compute import LOCAL, Compute
from s2ap_train.pruning.moving_topology import AdaptiveSparsity, MovingTopology
from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.topology import LayerRatios, layer_counts, random_masks
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import OnEpoch, TrainingConfig, train_classifier

_PUBLISHED_UPDATE_EVERY = 900  # optimiser steps
_LEAST_UPDATES = 20


@dataclass(frozen=True)
class FlyingBird:
    """Hyper-parameters of `prune_flying_bird`.

    Attributes:
        sparsity: Fraction of all prunable weights that are 0 throughout; with `plus`, at the start.
        layer_ratios: "erk": `erdos_renyi_counts`; "uniform": the same share of every layer.
        update_every: Optimiser steps between two updates of the masks; None is the published 900, or in a shorter run
            what makes 20 updates.
        death_rate: Fraction of a layer's kept weights that an update drops; it falls to 0 along a cosine.
        regrow: "random" as published, or "gradient": where the robust loss of one batch has its largest gradient (Evci
            et al. 2020, arXiv 1911.11134).
        plus: FlyingBird+: the sparsity adapts to the training.
        adaptation: How, with `plus`.
        training: Of the weights.
    """

    sparsity: float = 0.8
    layer_ratios: LayerRatios = "erk"
    update_every: int | None = None
    death_rate: float = 0.5
    regrow: Literal["random", "gradient"] = "random"
    plus: bool = False
    adaptation: AdaptiveSparsity = field(default_factory=AdaptiveSparsity)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    method: Literal["flying-bird"] = field(default="flying-bird", kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            RecipeError: With the values and what they may be.
        """
        every = 1 if self.update_every is None else self.update_every
        if not 0 < self.sparsity < 1 or not 0 <= self.death_rate < 1 or every < 1:
            raise RecipeError(
                f"FlyingBird got sparsity {self.sparsity}, death_rate {self.death_rate} and update_every {every}; "
                "expected 0 < sparsity < 1, 0 <= death_rate < 1 and update_every from 1"
            )
        if self.layer_ratios not in ("erk", "uniform") or self.regrow not in ("random", "gradient"):
            raise RecipeError(
                f"layer_ratios is {self.layer_ratios!r} and regrow is {self.regrow!r}; choose erk or uniform, and "
                "random or gradient"
            )
        if self.training.average_decay:
            raise RecipeError("an average of weights over moving masks is not sparse; set average_decay to 0")

    def update_interval(self, steps: int) -> int:
        """Optimiser steps between two updates in a run of `steps`.

        Raises:
            RecipeError: If `update_every` is so long that no update would come.
        """
        if self.update_every is None:
            return min(_PUBLISHED_UPDATE_EVERY, max(1, steps // _LEAST_UPDATES))
        if self.update_every >= steps:
            raise RecipeError(f"update_every is {self.update_every}, but training has only {steps} steps; lower it")
        return self.update_every


def prune_flying_bird(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: FlyingBird,
    *,
    seed: int,
    compute: Compute = LOCAL,
    snapshots: Snapshots | None = None,
    on_epoch: OnEpoch | None = None,
) -> PrunedModel:
    """Train a sparse network from its first weights on; the given network itself is not changed.

    It starts under a random mask. At every update each layer that is not dense drops its smallest weights and regrows
    as many elsewhere, from 0 and without momentum, so that the sparsity holds exactly. With `plus` the numbers may
    differ (`AdaptiveSparsity`). Scores are the final weights. Records carry also sparsity and hamming (the mask at the
    end of the epoch against that at its start) and, with `plus`, robust_gap and validation_robust_loss.

    Args:
        model: The untrained network.
        images: Training images, float32 [N, C, H, W] in [0, 1].
        labels: Their labels, int64 [N].
        validation: Images and labels that choose the epoch; never the test set.
        config: Hyper-parameters.
        seed: Of the first mask, the regrowth, the order, the augmentation and the attack.
        compute: Where, and in which precision.
        snapshots: Where every epoch is kept, so that training goes on where it was killed.
        on_epoch: Called after each epoch with its number and record.

    Raises:
        RecipeError: As `train_classifier`, or if no update would come.
    """
    network = copy.deepcopy(model)
    shapes = {name: tuple(weight.shape) for name, weight in prunable_weights(network).items()}
    counts = layer_counts(shapes, config.sparsity, config.layer_ratios)
    masks = random_masks(shapes, counts, torch.Generator().manual_seed(seed))
    topology = MovingTopology(
        network,
        (images, labels),
        validation,
        config,
        seed=seed,
        compute=compute,
        snapshots=None if snapshots is None else snapshots.child("topology"),
    )

    def report(epoch: int, record: Mapping[str, float]) -> None:
        if on_epoch is not None:
            on_epoch(epoch, {**record, **topology.records[epoch]})

    training = train_classifier(
        network,
        images,
        labels,
        validation,
        config.training,
        seed=seed,
        masks=masks,
        mask_update=topology,
        compute=compute,
        snapshots=snapshots,
        on_epoch=report,
    )
    history = tuple({**r, **m} for r, m in zip(training.history, topology.records, strict=False))
    scores = {name: weight.detach().clone() for name, weight in prunable_weights(network).items()}
    return PrunedModel(network, masks, scores, history, training.best_epoch, collapse=training.collapse)
