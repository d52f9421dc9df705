"""The white-box attack on one purifier, with classifier and members behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.types import Float32, Int64
from s2ap_train.adaptive.objectives import agreement_objective, mean_log_probability, targeted_agreement_objective
from s2ap_train.adaptive.purified import UnflaggingSystem, variant_view
from s2ap_train.adaptive.search import AdaptiveBudget, Descent, View, adaptive_attack
from s2ap_train.adaptive.systems import score_of
from s2ap_train.attacks.oblivious import pgd
from s2ap_train.attacks.square import square_search
from s2ap_train.data import ImageSet
from s2ap_train.purifier.gradient_path import GradientPath
from s2ap_train.purifier.variants import Variant, off
from s2ap_train.recipe.purifier_grid import ChoiceSettings

__all__ = [
    "ATTACK_VERSION",
    "BPDA",
    "GRADIENT",
    "NOT_BROKEN",
    "SURROGATE",
    "Attacked",
    "Behind",
    "Jury",
    "attack",
    "attack_in_words",
    "milliseconds",
    "oblivious_attack",
    "square_attack",
]

ATTACK_VERSION = 2
"""Raise it with every change of what an attack does: attacks that were kept under another number are made again."""
NOT_BROKEN, GRADIENT, BPDA, SURROGATE = range(4)
_TIMED_IMAGES = 64
_TIMED_RUNS = 5


@dataclass(frozen=True)
class Behind:
    """What stands behind the purifier.

    Attributes:
        classify: Images [N, C, H, W] -> logits or log-probabilities [N, K].
        members: The same, all of them are asked.
        name: In words, for the manifest.
        device: Where they compute; images and answers are on the CPU.
    """

    classify: Callable[[Tensor], Tensor]
    members: tuple[Callable[[Tensor], Tensor], ...]
    name: str
    device: str = "cpu"

    def view(self, variant: Variant) -> View:
        """What an attacker that knows everything computes with, on and to the CPU."""
        there = variant_view(variant, self.classify, self.members)

        def view(images: Tensor, path: GradientPath, count: int | None) -> tuple[Tensor, Tensor | None]:
            c, m = there(images.to(self.device), path, count)
            return c.cpu(), None if m is None else m.cpu()

        return there if self.device == "cpu" else view


class Jury(UnflaggingSystem):
    """The system under attack: the label with the highest mean log-probability of classifier and members.

    It never flags: no sequential test is calibrated when a purifier is chosen.
    """

    def __init__(self, view: View) -> None:
        super().__init__(lambda images: mean_log_probability(*view(images, "exact", None)))


@dataclass(frozen=True)
class Attacked:
    """What the attack on one purifier found.

    Attributes:
        images: The image of every sample that is closest to a wrong label [N, C, H, W].
        by: What broke it first [N]: NOT_BROKEN, GRADIENT (which is also what needed no attack on this purifier), BPDA
            or SURROGATE.
    """

    images: Float32
    by: Int64


def attack(
    variant: Variant,
    behind: Behind,
    data: ImageSet,
    settings: ChoiceSettings,
    *,
    eps: float,
    seed: int,
    candidates: list[Float32],
) -> Attacked:
    """Attack every image through the purifier: along its exact gradient, then, what that left, without it.

    The gradient of a purifier can say nothing and its values still be attacked (Athalye et al. 2018, arXiv 1802.00420);
    what is found without the exact gradient is counted, so that masked gradients are seen.

    Args:
        variant: The purifier.
        behind: What stands behind it.
        data: Images and true labels.
        settings: Steps and restarts.
        eps: l_inf budget, pixels in [0, 1].
        seed: Of the random starts.
        candidates: Images of other attacks, tried first and used as starts.
    """
    view = behind.view(variant)
    budget = AdaptiveBudget(
        steps=settings.steps, cheap_steps=settings.steps, restarts=settings.restarts, targets=1, check_every=5
    )
    jury, images, by = Jury(view), data.images, np.full(len(data), NOT_BROKEN)
    for code, plan in ((GRADIENT, _exact_plan()), (BPDA, _bpda_plan()), (SURROGATE, _surrogate_plan())):
        result = adaptive_attack(
            jury,
            view,
            plan,
            data,
            eps=eps,
            budget=budget,
            seed=seed + 104729 * (code - GRADIENT),
            candidates=candidates if code == GRADIENT else [images],
        )
        images = result.images
        by[(by == NOT_BROKEN) & ~jury.right(images, data.labels)] = code
    return Attacked(images, by)


def square_attack(
    variant: Variant, behind: Behind, data: ImageSet, settings: ChoiceSettings, *, eps: float, seed: int
) -> Float32:
    """Square, which asks for answers alone, on every image through the purifier [N, C, H, W]."""
    score = score_of(Jury(behind.view(variant)))
    return square_search(score, data.images, data.labels, eps=eps, queries=settings.square_queries, seed=seed)


def attack_in_words(settings: ChoiceSettings) -> str:
    """What the attacker did, for the manifest."""
    plans = (
        ("along the exact gradient", _exact_plan()),
        ("along the identity's (BPDA)", _bpda_plan()),
        ("along the J-free purifier's", _surrogate_plan()),
    )
    descents = "; ".join(f"{how}: {', '.join(one.name for one in plan)}" for how, plan in plans)
    square = (
        f"Square, {settings.square_queries} queries, on what the chosen purifier, its twin with rho 0 and off leave"
        if settings.square_queries
        else "no black-box attack"
    )
    restarts = f"{settings.restarts} restart{'s' if settings.restarts > 1 else ''}"
    return (
        f"PGD without the purifier, then Auto-PGD on the mean log-probability of classifier and members "
        f"({descents}), {settings.steps} steps each, {restarts}; {square}; what was found for one purifier is tried on "
        "all others"
    )


def oblivious_attack(behind: Behind, data: ImageSet, *, eps: float, seed: int) -> Float32:
    """PGD on the mean log-probability of classifier and members, as if there were no purifier [N, C, H, W]."""
    view = behind.view(off())
    return pgd(lambda images: mean_log_probability(*view(images, "none", None)), data, eps=eps, seed=seed)


def milliseconds(variant: Variant, behind: Behind, data: ImageSet) -> float:
    """Time of one image in a batch of up to 64, the median of a few runs; 0 where nothing is computed."""
    if variant.work == 0:
        return 0.0
    images = torch.from_numpy(data.images[:_TIMED_IMAGES]).to(behind.device)
    seconds = []
    with torch.no_grad():
        for _ in range(_TIMED_RUNS):
            began = time.perf_counter()
            variant.purify(images).cpu()
            seconds.append(time.perf_counter() - began)
    return 1000.0 * float(np.median(seconds)) / len(images)


def _exact_plan() -> list[Descent]:
    """'exact' is the gradient of every step of the purifier, 'straight_through' the same past its clamps."""
    agreement, targeted = agreement_objective(), targeted_agreement_objective()
    return [
        Descent(agreement, "exact", "random"),
        Descent(agreement, "straight_through", "best"),
        Descent(targeted, "exact", "best", target=0),
        Descent(targeted, "straight_through", "random", target=0),
    ]


def _bpda_plan() -> list[Descent]:
    return [
        Descent(agreement_objective(), "identity", "random"),
        Descent(targeted_agreement_objective(), "identity", "best", target=0),
    ]


def _surrogate_plan() -> list[Descent]:
    return [Descent(agreement_objective(), "surrogate", "random")]
