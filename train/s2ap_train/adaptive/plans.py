"""Which descents an attacker that knows everything runs, in which order."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from s2ap_defend.sequential import SequentialTest
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.evidence_surrogate import EvidenceSurrogate
from s2ap_train.adaptive.objectives import (
    Objective,
    agreement_objective,
    classifier_objective,
    evidence_objective,
    targeted_agreement_objective,
)
from s2ap_train.purifier.gradient_path import GradientPath

__all__ = ["Descent", "Start", "bare_plan", "defended_plan", "first_accepting"]

Start = Literal["random", "best"]


@dataclass(frozen=True)
class Descent:
    """One entry of an attack plan.

    Attributes:
        objective: What is minimised.
        path: How gradients pass the purifier; 'none' attacks as if it did not exist.
        start: A random point of the ball, or the best image so far.
        target: Rank of the wrong label that is aimed at, 0 the likeliest; None for objectives without target.
    """

    objective: Objective
    path: GradientPath
    start: Start
    target: int | None = None

    @property
    def name(self) -> str:
        """For the report, such as 'agreement, exact'."""
        aim = "" if self.target is None else f", target {self.target + 1}"
        return f"{self.objective.name}, {self.path}{aim}"


def defended_plan(test: SequentialTest, budget: AdaptiveBudget) -> list[Descent]:
    """Descents against a whole defence, cheap ones first.

    Args:
        test: Its sequential test.
        budget: How many labels are aimed at, and whether the plan is a short one.
    """
    evidence = evidence_objective(EvidenceSurrogate(test, torch.device("cpu")))
    sharp = evidence_objective(EvidenceSurrogate(test, torch.device("cpu")), weight=4.0)
    agreement = agreement_objective()
    asked_first = first_accepting(test)
    plan = [
        Descent(agreement, "none", "random"),
        Descent(evidence, "none", "best", target=0),
        Descent(agreement, "exact", "random"),
        *(Descent(evidence, "exact", "best", target=rank) for rank in range(budget.targets)),
        Descent(evidence, "exact", "random", target=0),
        Descent(classifier_objective("cross_entropy"), "straight_through", "random"),
    ]
    if not budget.thorough:
        return plan
    plan += [Descent(agreement, "identity", "best"), Descent(classifier_objective("dlr"), "exact", "random")]
    if 0 < asked_first < test.members:
        plan.append(Descent(agreement_objective(asked_first), "exact", "best"))
    for rank in range(budget.targets):
        plan.append(Descent(targeted_agreement_objective(), "straight_through", "random", target=rank))
        plan.append(Descent(sharp, "exact", "random", target=rank))
    return plan


def bare_plan(budget: AdaptiveBudget) -> list[Descent]:
    """Descents against the classifier alone."""
    plan = [Descent(classifier_objective(kind), "none", "random") for kind in ("cross_entropy", "dlr", "margin")]
    return plan + [Descent(targeted_agreement_objective(), "none", "random", rank) for rank in range(budget.targets)]


def first_accepting(test: SequentialTest) -> int:
    """Members after which an image can first be called clean; 0 where it can only come through undecided."""
    accepting = np.isfinite(test.lower)
    return int(accepting.argmax()) + 1 if accepting.any() else 0
