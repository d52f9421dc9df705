"""FlyingBird: adversarial training of a sparse network whose connections move while it trains.

Chen et al. 2022, "Sparsity Winning Twice" (arXiv 2202.09844). Values called published are the defaults of the authors'
program; where it chooses weights by thresholds and probabilities, the counts here are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from s2ap_defend.errors import RecipeError
from s2ap_train.pruning.topology import LayerRatios
from s2ap_train.training import TrainingConfig

_PUBLISHED_UPDATE_EVERY = 900  # optimiser steps
_LEAST_UPDATES = 20


@dataclass(frozen=True)
class AdaptiveSparsity:
    """How FlyingBird+ lets the sparsity move; the defaults are published.

    Attributes:
        start: Fraction of the epochs after which it begins.
        window: Epochs that are looked back on.
        threshold: Fraction of these epochs in which a signal must have risen.
        more_pruned: If the gap between training and validation robust accuracy has risen, this much more is dropped.
        more_grown: If the robust validation loss has risen, this much more is regrown.
    """

    start: float = 0.5
    window: int = 4
    threshold: float = 0.5
    more_pruned: float = 0.4
    more_grown: float = 0.05


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
