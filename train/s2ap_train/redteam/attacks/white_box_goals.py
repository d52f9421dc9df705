"""Attacks that want something else than an unflagged wrong answer: a wrong label, a false alarm, delay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from s2ap_defend.sequential import SequentialTest
from s2ap_train.adaptive.objectives import (
    Objective,
    alarm_objective,
    answer_objective,
    delay_objective,
    flag_then_flip_objective,
    jury_objective,
    vote_objective,
)
from s2ap_train.adaptive.plans import Start
from s2ap_train.adaptive.search import Descent
from s2ap_train.adaptive.systems import most_asked
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.white_box_search import alone, searched, sequential_test, skipped, surrogates_of
from s2ap_train.redteam.target import Target

__all__ = ["ATTACKS"]

_NO_VOTE = "what the file flags gets no vote: it is rejected, or the answer is kept"


def _answer(target: Target, task: Task) -> Found:
    """The answer itself on a wrong label, flagged or not: whichever, then the likeliest ones in turn."""
    answer, _ = surrogates_of(target)
    return searched(target, task, _towards(answer_objective(answer), task, target), goal="wrong label")


def _jury(target: Target, task: Task) -> Found:
    """Every juror on one wrong label, so that no vote gives the right one, whoever counts it."""
    answer, _ = surrogates_of(target)
    if not (sequential_test(target).vote_weights > 0.0).any():
        return skipped(task, "no member of the file has a vote")
    return searched(target, task, _towards(jury_objective(answer), task, target), goal="wrong label")


def _correction(target: Target, task: Task) -> Found:
    """The whole jury's vote on a wrong label, flagged or not."""
    if sequential_test(target).correction != "correct":
        return skipped(task, _NO_VOTE)
    return searched(target, task, _towards(vote_objective(*surrogates_of(target)), task, target), goal="wrong label")


def _flag_then_flip(target: Target, task: Task) -> Found:
    """An alarm, whatever the answer, and the vote that it calls for on a wrong label."""
    test = sequential_test(target)
    if test.correction != "correct":
        return skipped(task, _NO_VOTE)
    if test.answer == "robust":
        return skipped(task, "the jury answers, flagged or not: a flag hands nothing on")
    if _never_flags(test):
        return skipped(task, "the test never flags")
    objective = flag_then_flip_objective(*surrogates_of(target))
    return searched(target, task, _towards(objective, task, target), goal="wrong label")


def _false_alarm(target: Target, task: Task) -> Found:
    """Evidence above the alarm while the label stays right."""
    test = sequential_test(target)
    if _never_flags(test):
        return skipped(task, "the test never flags")
    return searched(target, task, _plan(alarm_objective(*surrogates_of(target)), task), goal="false alarm")


def _slow_down(target: Target, task: Task) -> Found:
    """Evidence between the boundaries until as many members were asked as the test can ask."""
    test = sequential_test(target)
    most = most_asked(test)
    if most == 1:
        return skipped(task, "the first member decides every image")
    return searched(target, task, _plan(delay_objective(*surrogates_of(target), most), task), goal="slow down")


def _never_flags(test: SequentialTest) -> bool:
    """Whether no evidence raises an alarm."""
    return not np.isfinite(test.upper).any() and test.final_threshold == np.inf


def _towards(objective: Objective, task: Task, target: Target) -> list[Descent]:
    """Towards wrong labels: any, past the purifier, then the likeliest ones in turn, through it where there is one."""
    plan = [
        Descent(objective, "none", "random"),
        Descent(objective, "none", "best", target=0),
        Descent(objective, "exact", "best", target=0),
    ]
    more = range(1, alone(task.budget).targets)
    return plan + [Descent(objective, target.path, "random", target=rank) for rank in more]


def _plan(objective: Objective, task: Task) -> list[Descent]:
    """Past the purifier, then through it; where there are restarts once more from elsewhere."""
    starts: list[Start] = ["best", "random"] if task.budget.restarts > 3 else ["best"]
    return [Descent(objective, "none", "random"), *(Descent(objective, "exact", start) for start in starts)]


_WRONG_LABEL: tuple[tuple[str, Callable[[Target, Task], Found], str, str], ...] = (
    (
        "answer",
        _answer,
        "the answer itself, by the very mix or vote that gives it, is driven to one wrong label, flagged or not",
        "Croce and Hein 2020, arXiv 2003.01690",
    ),
    (
        "jury",
        _jury,
        "every juror is driven to one wrong label, so that no vote of theirs gives the right one",
        "Carlini and Wagner 2017, arXiv 1705.07263, applied to the jury",
    ),
    (
        "correction",
        _correction,
        "the vote of the whole jury is driven to one wrong label, so that being flagged does not give the right one",
        "Tramer et al. 2020, arXiv 2002.08347, applied to the vote on what is flagged",
    ),
    (
        "flag-then-flip",
        _flag_then_flip,
        "an alarm is raised on purpose, and the jury that is then asked is driven to one wrong label",
        "Mangal et al. 2022, arXiv 2206.00278",
    ),
)

ATTACKS: tuple[RedTeamAttack, ...] = (
    *(
        RedTeamAttack(
            name=name,
            run=run,
            goal="wrong label",
            knows="everything",
            norm="linf",
            assumes=assumes,
            source=source,
            needs_test=True,
            weight=3.0,
        )
        for name, run, assumes, source in _WRONG_LABEL
    ),
    RedTeamAttack(
        name="false-alarm",
        run=_false_alarm,
        goal="false alarm",
        knows="everything",
        norm="linf",
        assumes="the evidence is raised while the label stays right, so that right answers are flagged",
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
