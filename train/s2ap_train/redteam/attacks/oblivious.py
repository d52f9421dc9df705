"""Attacks on the bare classifier, replayed on the defence, and the search that begins where all others ended."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from s2ap_train.adaptive.goals import Goal, reached
from s2ap_train.adaptive.plans import Descent, label_plan
from s2ap_train.adaptive.search import AdaptiveResult, adaptive_attack
from s2ap_train.attacks import oblivious
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.target import Target

__all__ = ["ATTACKS", "FOR_A_LABEL", "SEARCH"]

FOR_A_LABEL = "label: "
"""Before the descents of the search that were to give a wrong label, flagged or not, in what it notes."""


def _fgsm(target: Target, task: Task) -> Found:
    images = oblivious.fgsm(target.classify, task.data, eps=task.eps, seed=task.seed)
    return Found(images, {"steps": 1, "made_on": "bare classifier"})


def _pgd(target: Target, task: Task) -> Found:
    images = oblivious.pgd(target.classify, task.data, eps=task.eps, seed=task.seed)
    settings = {"steps": oblivious.PGD_STEPS, "relative_step_size": oblivious.PGD_RELATIVE_STEP}
    return Found(images, {**settings, "made_on": "bare classifier"})


def _search(target: Target, task: Task) -> Found:
    """Descents of several kinds on every image that nothing has broken yet; then, on what is left, for a wrong label.

    What `task.known` holds is tried first and is where descents start from the best image so far. The notes say how
    many images each descent broke that none before it had: `broken_by`; those of other attacks are 'other attack', and
    FOR_A_LABEL stands before those that got a wrong label of an image that was not broken till then.
    """
    found = _searched(target, task, target.plan(task.budget), "mislead")
    images, broken_by = found.images, dict(found.broken_by)
    left = np.flatnonzero(~target.system(images, task.data.labels).success)
    if target.test is not None and target.test.correction != "reject" and len(left):
        rest = replace(task, data=task.data.subset(left), known={name: one[left] for name, one in task.known.items()})
        turned = _searched(target, rest, label_plan(target.test, task.budget), "wrong label")
        wrong = reached("wrong label", target.system(turned.images, rest.data.labels), rest.data.labels)
        images[left[wrong]] = turned.images[wrong]
        broken_by |= {f"{FOR_A_LABEL}{name}": count for name, count in turned.broken_by.items()}
    return Found(images, {"broken_by": broken_by})


def _searched(target: Target, task: Task, plan: list[Descent], goal: Goal) -> AdaptiveResult:
    return adaptive_attack(
        target.system,
        target.view,
        plan,
        task.data,
        eps=task.eps,
        budget=task.budget,
        seed=task.seed,
        candidates=list(task.known.values()),
        goal=goal,
    )


ATTACKS = (
    RedTeamAttack(
        name="fgsm",
        run=_fgsm,
        goal="mislead",
        knows="classifier",
        norm="linf",
        assumes="one step along the sign of the bare classifier's gradient; the attacker does not know of the defence",
        source="Goodfellow et al. 2015, arXiv 1412.6572",
        weight=0.2,
    ),
    RedTeamAttack(
        name="pgd",
        run=_pgd,
        goal="mislead",
        knows="classifier",
        norm="linf",
        assumes="20 steps up the bare classifier's cross-entropy from a random point; the attacker does not know of "
        "the defence",
        source="Madry et al. 2018, arXiv 1706.06083",
        weight=0.3,
    ),
)

SEARCH = RedTeamAttack(
    name="unrolled-pgd",
    run=_search,
    goal="mislead",
    knows="everything",
    norm="linf",
    assumes="descents of several kinds through purifier, classifier, members and test, on every image that no other "
    "attack has broken, from random points and from the best image of any attack; then for a wrong label, flagged or "
    "not, on what is left",
    source="Croce and Hein 2020, arXiv 2003.01690; Bryniarski et al. 2021, arXiv 2106.15023",
    weight=14.0,
)
"""The search; the catalogue says after which attacks it comes."""
