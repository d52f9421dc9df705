"""HARP: pruning by trained scores, with a learned share for every layer and a hardware term that holds the total."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.pruning.allocation import Allocation, LearnedQuotas, QuotaSettings
from s2ap_train.pruning.score_pruning import ScorePruning
from s2ap_train.pruning.structures import CostTarget, Structure


@dataclass(frozen=True)
class Harp(ScorePruning):
    """Keep what has the largest trained scores, each layer a share of its own that is learned along.

    Zhao and Wressnegger 2023, "Holistic adversarially robust pruning"; `LearnedQuotas` says what is theirs and what is
    ours. S2AP moves the scores and never the shares. The result is meant to be fine-tuned.

    Attributes:
        target: What `sparsity` is the removed share of: the weights of the pruned layers, or their FLOPs.
        quotas: Of the learned shares.
    """

    same_share: ClassVar[bool] = False

    target: CostTarget = "parameters"
    quotas: QuotaSettings = field(default_factory=QuotaSettings)
    method: Literal["harp"] = field(default="harp", kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what quotas cannot do.

        Raises:
            RecipeError: As `ScorePruning`, or for 2:4, or if nothing is to be removed.
        """
        super().__post_init__()
        if self.structure == "2:4":
            raise RecipeError('2:4 keeps half of every layer, HARP learns how much; take base = "hydra" for 2:4')
        if self.sparsity == 0 or self.target not in ("parameters", "flops"):
            raise RecipeError(
                f"HARP needs a sparsity above 0 and target 'parameters' or 'flops'; found {self.sparsity} and "
                f"{self.target!r}"
            )

    def allocation(
        self, structure: Structure, model: nn.Module, image_shape: tuple[int, int, int], names: Sequence[str]
    ) -> Allocation:
        """Learned shares, held to the target."""
        cost = structure.cost(model, image_shape, self.target)
        device = next(model.parameters()).device
        return LearnedQuotas(structure, cost, 1 - self.sparsity, names, self.quotas, device)
