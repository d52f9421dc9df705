"""Which descents an attacker that knows everything runs, in which order."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from s2ap_defend.sequential import SequentialTest
from s2ap_train.adaptive.answer_surrogate import AnswerSurrogate
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.evidence_surrogate import EvidenceSurrogate
from s2ap_train.adaptive.goals import Goal
from s2ap_train.adaptive.objectives import (
    Objective,
    agreement_objective,
    answer_objective,
    bypass_objective,
    classifier_objective,
    evidence_objective,
    flag_then_flip_objective,
    jury_objective,
    targeted_agreement_objective,
    vote_objective,
)
from s2ap_train.purifier.gradient_path import GradientPath

__all__ = ["Descent", "Start", "bare_plan", "defended_plan", "first_accepting", "label_plan", "surrogates"]

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


def defended_plan(test: SequentialTest, budget: AdaptiveBudget, goal: Goal = "mislead") -> list[Descent]:
    """Descents against a whole defence, cheap ones first.

    Args:
        test: Its decision.
        budget: How many labels are aimed at, and whether the plan is a short one.
        goal: 'mislead', or 'wrong label'.

    Raises:
        ValueError: For another goal.
    """
    if goal == "wrong label":
        return label_plan(test, budget)
    if goal != "mislead":
        raise ValueError(f"there is no plan for the goal {goal!r}, only for 'mislead' and 'wrong label'")
    answer, found = surrogates(test)
    evidence, sharp, dull = (evidence_objective(answer, found, weight=weight) for weight in (1.0, 4.0, 0.25))
    agreement, jury, first = agreement_objective(), jury_objective(answer), first_accepting(test)
    bypass = bypass_objective(answer, found, first) if first else None
    past = [Descent(bypass, "none", "best", target=0)] if bypass else []
    plan = [
        Descent(agreement, "none", "random"),
        Descent(evidence, "none", "best", target=0),
        *past,  # also what is accepted before anything is purified
        Descent(agreement, "exact", "random"),
        *(Descent(evidence, "exact", "best", target=rank) for rank in range(budget.targets)),
        Descent(evidence, "exact", "random", target=0),
        Descent(answer_objective(answer), "straight_through", "random"),
    ]
    if not budget.thorough:
        return plan
    plan += [
        Descent(agreement, "identity", "best"),
        Descent(classifier_objective("dlr"), "exact", "random"),
        Descent(dull, "exact", "best", target=0),
    ]
    if bypass and first < test.members:
        plan += [Descent(bypass, "exact", "random", target=0), Descent(agreement_objective(first), "exact", "best")]
    for rank in range(budget.targets):
        if bypass:
            plan.append(Descent(bypass, "none", "random", target=rank))
        plan.append(Descent(jury, "straight_through", "random", target=rank))
        plan.append(Descent(sharp, "exact", "random", target=rank))
    return plan


def label_plan(test: SequentialTest, budget: AdaptiveBudget) -> list[Descent]:
    """Descents whose goal is a wrong final label, flagged or not, cheap ones first.

    Args:
        test: The decision.
        budget: As for `defended_plan`.
    """
    answer, evidence = surrogates(test)
    whole, jury, ranks = answer_objective(answer), jury_objective(answer), range(budget.targets)
    plan = [
        Descent(whole, "none", "random"),
        *(Descent(whole, "none", "best", target=rank) for rank in ranks),
        Descent(jury, "none", "random", target=0),
        Descent(whole, "exact", "random"),
        Descent(whole, "exact", "best", target=0),
    ]
    if test.correction == "correct":
        plan.append(Descent(vote_objective(answer, evidence), "exact", "best", target=0))
        if test.answer != "robust":
            plan.append(Descent(flag_then_flip_objective(answer, evidence), "exact", "best", target=0))
    if not budget.thorough:
        return plan
    plan.append(Descent(whole, "straight_through", "random"))
    for rank in ranks:
        plan.append(Descent(whole, "exact", "random", target=rank))
        plan.append(Descent(jury, "exact", "best" if rank == 0 else "random", target=rank))
        if test.correction == "correct" and test.answer != "robust":
            plan.append(Descent(flag_then_flip_objective(answer, evidence), "exact", "random", target=rank))
    return plan


def bare_plan(budget: AdaptiveBudget) -> list[Descent]:
    """Descents against the classifier alone."""
    plan = [Descent(classifier_objective(kind), "none", "random") for kind in ("cross_entropy", "dlr", "margin")]
    return plan + [Descent(targeted_agreement_objective(), "none", "random", rank) for rank in range(budget.targets)]


def surrogates(test: SequentialTest, device: torch.device | None = None) -> tuple[AnswerSurrogate, EvidenceSurrogate]:
    """(the answer, the evidence) of a decision with slopes, on a device; None: the CPU."""
    where = torch.device("cpu") if device is None else device
    return AnswerSurrogate(test, where), EvidenceSurrogate(test, where)


def first_accepting(test: SequentialTest) -> int:
    """Members after which an image can first be called clean; 0 where it can only come through undecided."""
    accepting = np.isfinite(test.lower)
    return int(accepting.argmax()) + 1 if accepting.any() else 0
