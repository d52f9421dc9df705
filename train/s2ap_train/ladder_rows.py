"""Rows of the closing table of a hardening: one defence under the attacks that know it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from s2ap_defend.types import Bool, Float32
from s2ap_train.data import ImageSet
from s2ap_train.evaluate import AdaptiveBudget
from s2ap_train.evaluate.adaptive import Descent, View, adaptive_attack, bare_plan, bare_view
from s2ap_train.evaluate.objectives import classifier_objective
from s2ap_train.evaluate.oblivious import pgd
from s2ap_train.evaluate.purified import UnflaggingSystem
from s2ap_train.twin import Twin

__all__ = ["MeasuredRow", "Rung", "attack_row", "purified_plan", "with_purifier"]


@dataclass(frozen=True)
class Rung:
    """One row: shares of the test images.

    Attributes:
        name: What is attacked.
        clean_accuracy: Final label right without attack.
        pgd_accuracy: Robust accuracy under PGD made on the bare network of this row.
        adaptive_accuracy: Robust accuracy under the strongest attack that knows everything in this row, PGD included.
        label_accuracy: Share whose final label is right under all attacks, flagged or not.
        flagged: Share flagged under the adaptive attack; 0 where nothing can flag.
        clean_flagged: Share of clean images flagged.
        members_used: Members asked on clean images.
    """

    name: str
    clean_accuracy: float
    pgd_accuracy: float
    adaptive_accuracy: float
    label_accuracy: float
    flagged: float = 0.0
    clean_flagged: float = 0.0
    members_used: float = 0.0


@dataclass(frozen=True)
class MeasuredRow:
    """A row, the images that the adaptive attack found, and which of them are right [N]."""

    rung: Rung
    images: Float32
    right: Bool


def with_purifier(
    bare: MeasuredRow, twin: Twin, data: ImageSet, eps: float, seed: int, budget: AdaptiveBudget
) -> tuple[MeasuredRow, MeasuredRow]:
    """The classifier of a file without its purifier and with it, each facing what was found for the other.

    Args:
        bare: The classifier's row, attacked without the purifier.
        twin: Of the file.
        data: The images of `bare`.
        eps: l_inf budget, pixels in [0, 1].
        seed: Of the random starts.
        budget: Steps through the purifier are as many as without it.
    """
    view = _purified_view(twin)
    purified = attack_row(
        "with purifier",
        view,
        bare_view(twin),
        purified_plan(budget),
        data,
        eps=eps,
        seed=seed,
        budget=replace(budget, steps=max(budget.steps, budget.cheap_steps)),
        known=[bare.images],
    )
    alone = UnflaggingSystem(lambda images: view(images, "none", 0)[0])
    right = bare.right & ~alone(purified.images, data.labels).success
    robust = float(right.mean())
    rung = replace(bare.rung, adaptive_accuracy=robust, label_accuracy=robust)
    return replace(bare, rung=rung, right=right), purified


def attack_row(
    name: str,
    view: View,
    bare: View,
    plan: list[Descent],
    data: ImageSet,
    *,
    eps: float,
    seed: int,
    budget: AdaptiveBudget,
    known: Sequence[Float32] = (),
) -> MeasuredRow:
    """Attack one row.

    Args:
        name: Of the row.
        view: What the attacker who knows everything computes with.
        bare: The same without the row's defence.
        plan: Descents through `view`.
        data: Images and true labels.
        eps: l_inf budget, pixels in [0, 1].
        seed: Of the random starts.
        budget: Steps and restarts.
        known: Images of attacks on other rows.
    """
    system = UnflaggingSystem(lambda images: view(images, "exact", 0)[0])
    oblivious = pgd(lambda images: bare(images, "none", 0)[0], data, eps=eps, seed=seed)
    result = adaptive_attack(
        system,
        view,
        plan,
        data,
        eps=eps,
        budget=budget,
        seed=seed,
        candidates=[oblivious, *known],
        workers=os.cpu_count() or 1,
    )
    right = ~system(result.images, data.labels).success
    robust = float(right.mean())
    rung = Rung(
        name=name,
        clean_accuracy=1.0 - float(system(data.images, data.labels).success.mean()),
        pgd_accuracy=1.0 - float(system(oblivious, data.labels).success.mean()),
        adaptive_accuracy=robust,
        label_accuracy=robust,
    )
    return MeasuredRow(rung, result.images, right)


def _purified_view(twin: Twin) -> View:
    def view(images: Tensor, path: str, members: int | None) -> tuple[Tensor, Tensor | None]:  # noqa: ARG001
        purified = images if path == "none" else twin.purify(images, path)  # type: ignore[arg-type]
        return twin.classify(purified), None

    return view


def purified_plan(budget: AdaptiveBudget) -> list[Descent]:
    """Every descent of `bare_plan` through the exact gradient, and others for gradients that clamps or steps mask."""
    through = [replace(one, path="exact") for one in bare_plan(budget)]
    return [
        *through,
        Descent(classifier_objective("cross_entropy"), "none", "random"),
        Descent(classifier_objective("margin"), "identity", "random"),
        Descent(classifier_objective("dlr"), "exact", "best"),
        Descent(classifier_objective("margin"), "straight_through", "random"),
    ]
