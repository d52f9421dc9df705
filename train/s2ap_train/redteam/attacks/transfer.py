"""Attacks on networks that the attacker trained itself, tried on the defence, of which it knows nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32
from s2ap_train.attacks.hidden_layer import middle_layer
from s2ap_train.attacks.ila import ila
from s2ap_train.attacks.joint import joint_network
from s2ap_train.attacks.pgd import Objective, margin_sum, pgd
from s2ap_train.jobs import Found
from s2ap_train.models.modes import evaluation_mode
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.candidates import best_of, into_ball
from s2ap_train.redteam.target import Target

__all__ = ["ATTACKS", "RELATIVE_STEP"]

RELATIVE_STEP = 0.1
"""Length of a step, of eps. What transfers best is a loss that is driven far beyond the surrogate's border."""


def _transfer_base(target: Target, task: Task) -> Found:
    with _lent(task) as networks:
        found = _descents({"base": networks[0]}, task)
        if _has_a_middle(networks[0]):
            x, y = task.data.images, task.data.labels
            found["base, intermediate level"] = ila(networks[0], x, y, seed=task.seed, eps=task.eps)
    return _tried(found, target, task)


def _transfer_ensemble(target: Target, task: Task) -> Found:
    with _lent(task) as (base, *members):
        if not members:
            raise RecipeError(
                "transfer-ensemble needs networks besides the attacker's base, and there are none; train surrogates "
                "with at least one member"
            )
        together, robust = joint_network(base, members), joint_network(members[0], members[1:])
        found = _descents({"base and members": together, "members": robust}, task)
    return _tried(found, target, task)


def _descents(networks: dict[str, Callable[[Tensor], Tensor]], task: Task) -> dict[str, Float32]:
    """Images at the end of PGD on each network, on the cross-entropy and on the margin of its logits."""
    x, y = torch.from_numpy(task.data.images), torch.from_numpy(task.data.labels)
    objectives: dict[str, Objective | None] = {"cross-entropy": None, "margin": margin_sum}
    found: dict[str, Float32] = {}
    for name, network in networks.items():
        for kind, objective in objectives.items():
            generator = torch.Generator().manual_seed(task.seed + len(found))
            moved = pgd(
                network,
                x,
                y,
                eps=task.eps,
                steps=task.budget.cheap_steps,
                step_size=RELATIVE_STEP * task.eps,
                generator=generator,
                objective=objective,
            )
            found[f"{name}, {kind}"] = moved.numpy()
    return found


def _tried(found: dict[str, Float32], target: Target, task: Task) -> Found:
    inside = {name: into_ball(images, task.data.images, task.eps, "linf") for name, images in found.items()}
    images, broken_by = best_of(target.system, task.data, inside)
    return Found(images, {"networks": len(task.surrogates), "steps": task.budget.cheap_steps, "broken_by": broken_by})


@contextmanager
def _lent(task: Task) -> Iterator[tuple[nn.Module, ...]]:
    """The attacker's networks, in evaluation mode meanwhile."""
    if not task.surrogates:
        raise RecipeError(
            "attacks by transfer need networks that the attacker trained, and there are none; evaluate with --recipe, "
            "which says how to train them"
        )
    with ExitStack() as modes:
        for network in task.surrogates:
            modes.enter_context(evaluation_mode(network))
        yield task.surrogates


def _has_a_middle(network: nn.Module) -> bool:
    try:
        middle_layer(network)
    except RecipeError:
        return False
    return True


ATTACKS = (
    RedTeamAttack(
        name="transfer-base",
        run=_transfer_base,
        goal="mislead",
        knows="other networks",
        norm="linf",
        assumes="attacks on a classifier that the attacker trained itself on the same data; it tries each of its "
        "three images once on the system and keeps the best",
        source="Papernot et al. 2017, arXiv 1602.02697; Huang et al. 2019, arXiv 1907.10823",
        needs="surrogates",
        weight=0.5,
    ),
    RedTeamAttack(
        name="transfer-ensemble",
        run=_transfer_ensemble,
        goal="mislead",
        knows="other networks",
        norm="linf",
        assumes="attacks on an ensemble of adversarially trained networks that the attacker trained itself on the "
        "same data; it tries each of its four images once on the system and keeps the best",
        source="Liu et al. 2017, arXiv 1611.02770; Tramer et al. 2018, arXiv 1705.07204",
        needs="surrogates",
        weight=1.0,
    ),
)
