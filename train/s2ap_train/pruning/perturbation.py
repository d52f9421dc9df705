"""What passes between a mask search and whoever moves its scores before the gradient is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from s2ap_train.pruning.masks import Masks

Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Moved:
    """What a perturbation of the scores did: masks there, fraction of kept weights that changed, radius."""

    masks: dict[str, Tensor]
    flip_rate: float
    radius: float


class ScoreLoss(Protocol):
    """The loss of one batch at the present scores."""

    def __call__(self, masks: Masks) -> Tensor:
        """The loss under masks, differentiable in the scores."""

    def gradients(self, masks: Masks, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Its gradients, averaged over processes."""
