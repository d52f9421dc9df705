"""APGD of the library pyautoattack on what answers, through every step of the purifier."""

from __future__ import annotations

import warnings
from functools import partial

import torch

from s2ap_train.attacks.budget import project
from s2ap_train.attacks.right_images import class_count
from s2ap_train.jobs import Found
from s2ap_train.measures.autoattack import FEWEST_FOR_DLR, Loss, apgd, autoattacked
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.cross_checks import Answering
from s2ap_train.redteam.attacks.white_box_search import alone
from s2ap_train.redteam.target import Target

__all__ = ["ATTACKS"]


def _apgd(loss: Loss, target: Target, task: Task) -> Found:
    """What answers behind the purifier, the detector ignored: images that fool it are given back, flagged or not.

    The library's restarts go to the images that are not fooled yet; those that never are come back clean. Below three
    classes the difference-of-logits ratio does not exist, and its place is taken by the cross-entropy.
    """
    budget = alone(task.budget)
    images, labels = task.data.images, task.data.labels
    answering = Answering(target)
    classes = class_count(answering, images)
    used: Loss = loss if classes >= FEWEST_FOR_DLR else "ce"
    found = apgd(
        answering,
        images,
        labels,
        loss=used,
        eps=task.eps,
        seed=task.seed,
        iterations=budget.steps,
        restarts=budget.restarts,
        batch_size=budget.batch,
    )
    return Found(project(found, images, task.eps), {"steps": budget.steps, "restarts": budget.restarts, "loss": used})


def _autoattack(target: Target, task: Task) -> Found:
    """The whole of AutoAttack on what answers behind the purifier; what is flagged is for the file to say."""
    x, y = torch.from_numpy(task.data.images), torch.from_numpy(task.data.labels)
    budget = task.budget
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "there are .* points with zero gradient")
        found, attacks, _ = autoattacked(
            Answering(target).eval(),
            x,
            y,
            eps=task.eps,
            seed=task.seed,
            iterations=budget.steps,
            queries=budget.square_queries,
            batch_size=budget.batch,
        )
    notes = {"attacks": list(attacks), "steps": budget.steps, "queries": budget.square_queries}
    return Found(project(found.detach().numpy(), task.data.images, task.eps), notes)


_LOSSES: tuple[tuple[Loss, str], ...] = (("ce", "cross-entropy"), ("dlr", "difference-of-logits ratio"))

_APGD = tuple(
    RedTeamAttack(
        name=f"apgd-{loss}",
        run=partial(_apgd, loss),
        goal="mislead",
        knows="everything",
        norm="linf",
        assumes=f"AutoAttack's APGD on the {words} of what answers, be it the classifier, the mix or the jurors' mean, "
        "through every step of the purifier; the test is ignored",
        source="Croce and Hein 2020, arXiv 2003.01690 (pyautoattack)",
        weight=1.5,
    )
    for loss, words in _LOSSES
)

ATTACKS: tuple[RedTeamAttack, ...] = (
    *_APGD,
    RedTeamAttack(
        name="autoattack",
        run=_autoattack,
        goal="mislead",
        knows="everything",
        norm="linf",
        assumes="AutoAttack's standard set on what answers, be it the classifier, the mix or the jurors' mean, through "
        "every step of the purifier; the test is ignored",
        source="Croce and Hein 2020, arXiv 2003.01690 (pyautoattack)",
        weight=30.0,
    ),
)
