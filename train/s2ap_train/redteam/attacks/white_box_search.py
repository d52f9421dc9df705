"""One attack as a plan of descents, judged by the system as descents go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from s2ap_defend.sequential import SequentialTest
from s2ap_train.adaptive.answer_surrogate import AnswerSurrogate
from s2ap_train.adaptive.evidence_surrogate import EvidenceSurrogate
from s2ap_train.adaptive.goals import Goal
from s2ap_train.adaptive.plans import surrogates
from s2ap_train.adaptive.regions import Norm
from s2ap_train.adaptive.search import AdaptiveBudget, Descent, adaptive_attack
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.target import Target

__all__ = ["SKIPPED", "alone", "searched", "sequential_test", "skipped", "surrogates_of"]

SKIPPED = "skipped"
"""Key of the note that says why an attack had nothing to do: its images are the clean ones."""


def searched(
    target: Target, task: Task, plan: Sequence[Descent], *, goal: Goal = "mislead", norm: Norm = "linf"
) -> Found:
    """Images nearest to a goal after a plan of descents; the notes say which descent broke how many images first."""
    budget = alone(task.budget)
    result = adaptive_attack(
        target.system,
        target.view,
        plan,
        task.data,
        eps=task.l2 if norm == "l2" else task.eps,
        budget=budget,
        seed=task.seed,
        norm=norm,
        goal=goal,
    )
    settings = {"steps": budget.steps, "cheap_steps": budget.cheap_steps, "restarts": budget.restarts}
    return Found(result.images, {**settings, "broken_by": result.broken_by})


def alone(budget: AdaptiveBudget) -> AdaptiveBudget:
    """What one attack gets: a third of the restarts, half of the targets, three fifths of a thorough descent's steps.

    There are many attacks; the whole of the budget is for the search that starts where all of them ended.
    """
    return replace(
        budget,
        steps=max(1, 3 * budget.steps // 5) if budget.thorough else budget.steps,
        restarts=max(1, (budget.restarts + 1) // 3),
        targets=(budget.targets + 1) // 2,
    )


def skipped(task: Task, why: str) -> Found:
    """The clean images, with the reason why there was nothing to attack."""
    return Found(task.data.images.copy(), {SKIPPED: why})


def sequential_test(target: Target) -> SequentialTest:
    """The test of a target that has one.

    Raises:
        ValueError: If it has none.
    """
    if target.test is None:
        raise ValueError(f"{target.name!r} has no sequential test, so there are neither members nor evidence to attack")
    return target.test


def surrogates_of(target: Target) -> tuple[AnswerSurrogate, EvidenceSurrogate]:
    """The target's answer and evidence with slopes.

    Raises:
        ValueError: If it has no test.
    """
    return surrogates(sequential_test(target))
