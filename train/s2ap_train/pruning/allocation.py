"""How much each layer keeps: the same share everywhere, or quotas that are learned with the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_train.pruning.masks import Masks, kept_count
from s2ap_train.pruning.scores import straight_through
from s2ap_train.pruning.structures import Cost, Structure

__all__ = ["Allocation", "LearnedQuotas", "QuotaSettings", "UniformKeep"]

_BISECTIONS = 60
_FROZEN_BELOW = 5e-5  # a hardware term that rounds to 0.0000 (HARP)


class Allocation(Protocol):
    """Cuts scores into masks and says how a loss reaches what decides the cut."""

    def masks(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks of the training step."""

    def final_masks(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks at exactly the target: what an epoch is judged by and what is kept in the end."""

    def values(self, scores: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """The masks as numbers, differentiable in the scores and in `parameters`."""

    def parameters(self) -> dict[str, Tensor]:
        """Further tensors that the optimiser trains, by name."""

    def penalty(self, epoch: int) -> Tensor | None:
        """What is added to the loss in this epoch; None = nothing."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """What to record of the epoch."""

    def state(self) -> dict[str, float]:
        """What a resumed search needs besides `parameters`."""

    def restore(self, state: Mapping[str, float]) -> None:
        """Take over a state."""


class UniformKeep:
    """Every layer or group keeps the same share: HYDRA and Robust Scratch Tickets.

    Args:
        structure: Cuts one layer.
        keep_ratio: Share kept, above 0, at most 1.
    """

    def __init__(self, structure: Structure, keep_ratio: float) -> None:
        self._structure, self._keep_ratio = structure, keep_ratio

    def masks(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut every layer at the ratio."""
        return {name: self._structure.cut(s.detach(), self._keep_ratio) for name, s in scores.items()}

    final_masks = masks

    def values(self, scores: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Straight through to the scores."""
        return {name: straight_through(s, masks[name]) for name, s in scores.items()}

    def parameters(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def penalty(self, epoch: int) -> Tensor | None:  # noqa: ARG002
        """None."""
        return None

    def end_epoch(self, epoch: int) -> dict[str, float]:  # noqa: ARG002
        """Nothing."""
        return {}

    def state(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Nothing to take over."""


@dataclass(frozen=True)
class QuotaSettings:
    """Hyper-parameters of `LearnedQuotas`.

    Attributes:
        least: Smallest share of a layer, relative to the target share (HARP's alpha).
        start: Share that every layer starts with; None = the target. HARP starts at 0.1 whatever the target.
        penalty: Weight gamma_hw of the hardware term; it grows with the epoch until the target is met.
    """

    least: float = 0.1
    start: float | None = None
    penalty: float = 0.01

    def __post_init__(self) -> None:
        """Refuse shares outside (0, 1].

        Raises:
            RecipeError: With the setting.
        """
        start = 1.0 if self.start is None else self.start
        if not 0 < self.least < 1 or not 0 < start <= 1 or self.penalty < 0:
            raise RecipeError(
                f"quotas need 0 < least < 1, 0 < start <= 1 and penalty >= 0; found {self.least}, {self.start}, "
                f"{self.penalty}"
            )


class LearnedQuotas:
    """One learned share per layer or group, held to a total cost by a hardware term (HARP).

    Zhao and Wressnegger 2023, "Holistic adversarially robust pruning": k = sigmoid(theta) * (1 - k_min) + k_min with
    k_min = least * target; dL/dk = sum over the layer of dL/dm; the term max(rate / target - 1, 0) is weighted by
    (epoch + 1) * penalty, a weight that stays as it is from the first epoch whose term rounds to 0.0000. Ours: the mask
    that is kept is cut at the target, all thetas moved by one common amount, so that runs compare at equal cost.

    Args:
        structure: Cuts one layer.
        cost: Cost by shares.
        target: Share of the dense cost to keep, above 0, below 1.
        names: Of the layers or groups.
        settings: Hyper-parameters.
        device: Of the scores.
    """

    def __init__(
        self,
        structure: Structure,
        cost: Cost,
        target: float,
        names: Sequence[str],
        settings: QuotaSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self._structure, self._cost, self._target, self._settings = structure, cost, target, settings
        self._least = settings.least * target
        start = self._uniform_share(names) if settings.start is None else settings.start
        inside = min(max((start - self._least) / (1 - self._least), 0.01), 0.99)  # clipped from below at +0.01: no NaN
        logit = torch.logit(torch.tensor(inside, dtype=torch.float64)).float().to(device)
        self._thetas = {name: logit.clone().requires_grad_() for name in names}
        self._frozen_weight: float | None = None

    def shares(self, offset: float = 0.0) -> dict[str, Tensor]:
        """Kept share of every layer, differentiable; all thetas moved by `offset`."""
        return {
            name: torch.sigmoid(theta + offset) * (1 - self._least) + self._least
            for name, theta in self._thetas.items()
        }

    def rate(self) -> float:
        """Cost at the learned shares, relative to the dense network."""
        return float(self._cost.rate(self.shares()).detach())

    def masks(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut every layer at its learned share."""
        return self._cut(scores, 0.0)

    def final_masks(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut at the shares nearest to the learned ones that cost, in whole weights, no more than the target."""
        sizes = {name: s.numel() for name, s in scores.items()}
        low, high = -30.0, 30.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self._whole_rate(sizes, middle) > self._target:
                high = middle
            else:
                low = middle
        return self._cut(scores, low)

    def values(self, scores: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Straight through to the scores, and to the share: its gradient is the sum of the mask's."""
        shares = self.shares()
        return {
            name: straight_through(s, masks[name]) + (shares[name] - shares[name].detach()).to(s)
            for name, s in scores.items()
        }

    def parameters(self) -> dict[str, Tensor]:
        """The thetas."""
        return {f"quota.{name}": theta for name, theta in self._thetas.items()}

    def penalty(self, epoch: int) -> Tensor | None:
        """The weighted hardware term; gamma_t grows until the target was first met."""
        weight = (epoch + 1) * self._settings.penalty if self._frozen_weight is None else self._frozen_weight
        return weight * self._term()

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Freeze the weight if the target is met; record rate and weight."""
        weight = (epoch + 1) * self._settings.penalty
        if self._frozen_weight is None and float(self._term().detach()) < _FROZEN_BELOW:
            self._frozen_weight = weight
        return {"rate": self.rate(), "penalty_weight": weight if self._frozen_weight is None else self._frozen_weight}

    def state(self) -> dict[str, float]:
        """The frozen weight, if there is one."""
        return {} if self._frozen_weight is None else {"frozen_weight": self._frozen_weight}

    def restore(self, state: Mapping[str, float]) -> None:
        """Take over the frozen weight."""
        self._frozen_weight = state.get("frozen_weight")

    def _term(self) -> Tensor:
        return (self._cost.rate(self.shares()) / self._target - 1).clamp_min(0)

    def _cut(self, scores: Mapping[str, Tensor], offset: float) -> dict[str, Tensor]:
        shares = self.shares(offset)
        return {name: self._structure.cut(s.detach(), float(shares[name].detach())) for name, s in scores.items()}

    def _whole_rate(self, sizes: Mapping[str, int], offset: float) -> float:
        """Cost with the numbers that `cut` keeps."""
        shares = {name: float(share.detach()) for name, share in self.shares(offset).items()}
        kept = {name: torch.tensor(kept_count(sizes[name], share) / sizes[name]) for name, share in shares.items()}
        return float(self._cost.rate(kept))

    def _uniform_share(self, names: Sequence[str]) -> float:
        """The common share at which the cost is the target: a product of two shares needs more than the target."""
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if float(self._cost.rate({name: torch.tensor(middle) for name in names})) > self._target:
                high = middle
            else:
                low = middle
        return low
