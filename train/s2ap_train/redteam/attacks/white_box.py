"""Attacks with gradients through the whole defence, each alone; what all of them leave is attacked by the search."""

from __future__ import annotations

from functools import partial

import numpy as np

from s2ap_train.adaptive.objectives import (
    agreement_objective,
    bypass_objective,
    evidence_objective,
    targeted_agreement_objective,
)
from s2ap_train.adaptive.plans import first_accepting
from s2ap_train.adaptive.search import Descent
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks import white_box_features, white_box_goals, white_box_library, white_box_orthogonal
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.white_box_search import alone, searched, sequential_test, skipped, surrogates_of
from s2ap_train.redteam.target import Target

__all__ = ["ATTACKS", "PREFIXES"]

PREFIXES = (1, 2, 3, 4, 6, 8)
"""Numbers of first members that agreement attacks look at; another looks at all."""

_AUTO_PGD = "Croce and Hein 2020, arXiv 2003.01690"
_DETECTORS = "Carlini and Wagner 2017, arXiv 1705.07263"


def _bpda(target: Target, task: Task) -> Found:
    """Descents that take the purifier, or only its clamps, for the identity on their way back."""
    if not target.purifies:
        return skipped(task, "there is no purifier whose gradient could be replaced")
    plan = [Descent(agreement_objective(), "identity", "random")]
    if task.budget.thorough:
        plan.append(Descent(targeted_agreement_objective(), "straight_through", "best", target=0))
    return searched(target, task, plan)


def _agreement(members: int | None, target: Target, task: Task) -> Found:
    """One wrong label for the classifier and the first members: whichever, then the likeliest ones in turn."""
    there = sequential_test(target).members
    if members is not None and members >= there:
        return skipped(task, f"the file has {there} members: 'agreement' looks at all of them")
    any_label, one_label = agreement_objective(members), targeted_agreement_objective(members)
    plan = [
        Descent(any_label, "none", "random"),
        Descent(one_label, "none", "best", target=0),
        Descent(any_label, "exact", "random"),
    ]
    if members is None or task.budget.restarts > 3:
        plan += [Descent(one_label, "exact", "best", rank) for rank in range(alone(task.budget).targets - 1)]
    return searched(target, task, plan)


def _evidence(target: Target, task: Task) -> Found:
    """The least evidence that a wrong label can be had with, towards the likeliest wrong labels in turn."""
    ranks = range(alone(task.budget).targets)
    evidence = evidence_objective(*surrogates_of(target))
    plan = [
        Descent(evidence, "none", "random", target=0),
        *(Descent(evidence, "exact", "best", target=rank) for rank in ranks),
    ]
    return searched(target, task, plan)


def _bypass(target: Target, task: Task) -> Found:
    """A wrong answer of the classifier and the first members that may accept, and do; later ones are ignored."""
    test, targets = sequential_test(target), alone(task.budget).targets
    first = first_accepting(test)
    if first == 0:
        return skipped(task, "the test calls nothing clean before all members were asked")
    answer, evidence = surrogates_of(target)
    early = bypass_objective(answer, evidence, first)
    plan = [Descent(early, "none", "random", target=0), Descent(early, "exact", "best", target=0)]
    if task.budget.thorough:
        plan += [Descent(early, "exact", "random", target=rank) for rank in range(1, targets)]
        later = [k for k in range(first + 1, test.members + 1) if np.isfinite(test.lower[k - 1])]
        objectives = [bypass_objective(answer, evidence, k) for k in later[: targets - 1]]
        plan += [Descent(one, "exact", "best", target=0) for one in objectives]
    return searched(target, task, plan)


def _l2(target: Target, task: Task) -> Found:
    """Normalised-gradient descents in the l2 ball through the exact purifier."""
    any_label, one_label = agreement_objective(), targeted_agreement_objective()
    plan = [Descent(any_label, "none", "random"), Descent(any_label, "exact", "random")]
    if target.test is None:
        plan.append(Descent(one_label, "exact", "random", target=0))
    elif task.budget.thorough:
        plan.append(Descent(evidence_objective(*surrogates_of(target)), "exact", "best", target=0))
    return searched(target, task, plan, norm="l2")


_AGREEMENT = tuple(
    RedTeamAttack(
        name="agreement" if members is None else f"agreement-{members}",
        run=partial(_agreement, members),
        goal="mislead",
        knows="everything",
        norm="linf",
        assumes=f"Auto-PGD through the purifier makes the classifier and {whom} agree on one wrong label",
        source=f"{_AUTO_PGD}; {_DETECTORS}",
        needs_test=True,
        weight=3.0 if members is None else 2.0,
    )
    for members, whom in [
        *((k, "the first member" if k == 1 else f"the first {k} members") for k in PREFIXES),
        (None, "all members"),
    ]
)

_ALONE = (
    RedTeamAttack(
        name="bpda",
        run=_bpda,
        goal="mislead",
        knows="everything",
        norm="linf",
        assumes="the purifier is run forwards; backwards it counts as the identity, or its clamps do",
        source="Athalye et al. 2018, arXiv 1802.00420",
        needs_test=True,
        weight=2.0,
    ),
    *_AGREEMENT,
    RedTeamAttack(
        name="evidence",
        run=_evidence,
        goal="mislead",
        knows="everything",
        norm="linf",
        assumes="with the tables of the decision the attacker lowers the evidence itself while the answer is wrong",
        source="Bryniarski et al. 2021, arXiv 2106.15023; Tramer et al. 2020, arXiv 2002.08347",
        needs_test=True,
        weight=3.0,
    ),
    RedTeamAttack(
        name="bypass",
        run=_bypass,
        goal="mislead",
        knows="everything",
        norm="linf",
        assumes="the attacker knows the order of the members and is accepted before the later ones are asked",
        source=f"{_DETECTORS}, applied to the stops of the sequential test",
        needs_test=True,
        weight=2.0,
    ),
)

_L2 = RedTeamAttack(
    name="l2-pgd",
    run=_l2,
    goal="mislead",
    knows="everything",
    norm="l2",
    assumes="Auto-PGD through the purifier in an l2 ball: on one wrong label for all, then on the evidence",
    source=_AUTO_PGD,
    weight=3.0,
)

ATTACKS: tuple[RedTeamAttack, ...] = (
    *white_box_library.ATTACKS,
    *_ALONE,
    *white_box_orthogonal.ATTACKS,
    *white_box_features.ATTACKS,
    _L2,
    *white_box_goals.ATTACKS,
)
"""All of this kind, in the order of the report."""
