"""Attacks that want something else than an unflagged wrong answer: a wrong correction, a false alarm, delay."""

from __future__ import annotations

import numpy as np

from s2ap_train.adaptive.objectives import (
    Objective,
    alarm_objective,
    delay_objective,
    targeted_agreement_objective,
    vote_objective,
)
from s2ap_train.adaptive.plans import Start
from s2ap_train.adaptive.search import Descent
from s2ap_train.adaptive.systems import most_asked
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.white_box_search import alone, searched, sequential_test, skipped, surrogate_of
from s2ap_train.redteam.target import Target

__all__ = ["ATTACKS"]


def _correction(target: Target, task: Task) -> Found:
    """The members' vote on a wrong label, whether or not the input is flagged for it."""
    test = sequential_test(target)
    if not test.correct:
        return skipped(task, "the file rejects what it flags: no vote answers")
    vote = vote_objective(surrogate_of(target), test.vote_members or test.members)
    plan = [
        Descent(targeted_agreement_objective(), "none", "random", target=0),
        Descent(vote, "exact", "best", target=0),
    ]
    plan += [Descent(vote, "exact", "random", target=rank) for rank in range(1, alone(task.budget).targets)]
    return searched(target, task, plan, goal="wrong label")


def _false_alarm(target: Target, task: Task) -> Found:
    """Evidence above the alarm while the classifier stays right."""
    test = sequential_test(target)
    if not np.isfinite(test.upper).any() and test.final_threshold == np.inf:
        return skipped(task, "the test never flags")
    return searched(target, task, _plan(alarm_objective(surrogate_of(target)), task), goal="false alarm")


def _slow_down(target: Target, task: Task) -> Found:
    """Evidence between the boundaries until as many members were asked as the test can ask."""
    test = sequential_test(target)
    most = most_asked(test)
    if most == 1:
        return skipped(task, "the first member decides every image")
    return searched(target, task, _plan(delay_objective(surrogate_of(target), most), task), goal="slow down")


def _plan(objective: Objective, task: Task) -> list[Descent]:
    """Past the purifier, then through it; where there are restarts once more from elsewhere."""
    starts: list[Start] = ["best", "random"] if task.budget.restarts > 3 else ["best"]
    return [Descent(objective, "none", "random"), *(Descent(objective, "exact", start) for start in starts)]


ATTACKS: tuple[RedTeamAttack, ...] = (
    RedTeamAttack(
        name="correction",
        run=_correction,
        goal="wrong label",
        knows="everything",
        norm="linf",
        assumes="the voting members are driven to one wrong label, so that being flagged does not give the right one",
        source="Tramer et al. 2020, arXiv 2002.08347, applied to the correction vote",
        needs_test=True,
        weight=3.0,
    ),
    RedTeamAttack(
        name="false-alarm",
        run=_false_alarm,
        goal="false alarm",
        knows="everything",
        norm="linf",
        assumes="the evidence is raised while the classifier stays right, so that right answers are flagged",
        source="Bryniarski et al. 2021, arXiv 2106.15023, with the detector's sign turned round",
        needs_test=True,
        weight=3.0,
    ),
    RedTeamAttack(
        name="slow-down",
        run=_slow_down,
        goal="slow down",
        knows="everything",
        norm="linf",
        assumes="the evidence is held between the boundaries, so that every image costs as many members as it can",
        source="Hong et al. 2021, arXiv 2010.02432, applied to the stops of the sequential test",
        needs_test=True,
        weight=3.0,
    ),
)
