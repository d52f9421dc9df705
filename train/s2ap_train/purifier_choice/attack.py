"""The white-box attack on one purifier, with classifier and members behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.types import Bool, Float32, Int64
from s2ap_train.data import ImageSet
from s2ap_train.evaluate.adaptive import AdaptiveBudget, Descent, Path, View, adaptive_attack
from s2ap_train.evaluate.objectives import agreement_objective, mean_log_probability, targeted_agreement_objective
from s2ap_train.evaluate.oblivious import pgd
from s2ap_train.evaluate.purified import variant_view
from s2ap_train.evaluate.systems import Outcome, never_flagged
from s2ap_train.purifier.variants import Variant, off
from s2ap_train.purifier_grid import ChoiceSettings

__all__ = ["Behind", "Jury", "attack", "attack_in_words", "milliseconds", "oblivious_attack"]

_TIMED_IMAGES = 64
_TIMED_RUNS = 5
_BATCH = 256


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
        """What an attacker who knows everything computes with, on and to the CPU."""
        there = variant_view(variant, self.classify, self.members)

        def view(images: Tensor, path: Path, count: int | None) -> tuple[Tensor, Tensor | None]:
            c, m = there(images.to(self.device), path, count)
            return c.cpu(), None if m is None else m.cpu()

        return there if self.device == "cpu" else view


class Jury:
    """The system under attack: the label with the highest mean log-probability of classifier and members.

    It never flags: no sequential test is calibrated when a purifier is chosen.
    """

    def __init__(self, view: View) -> None:
        self._view = view

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome of the labels; the score is the margin of the true label."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), _BATCH):
                c, m = self._view(torch.from_numpy(images[start : start + _BATCH]), "exact", None)
                parts.append(mean_log_probability(c, m).numpy())
        return never_flagged(np.concatenate(parts), labels)

    def right(self, images: Float32, labels: Int64) -> Bool:
        """Images whose label is the true one [N]."""
        return np.asarray(~self(images, labels).success)


def attack(
    variant: Variant,
    behind: Behind,
    data: ImageSet,
    settings: ChoiceSettings,
    *,
    eps: float,
    seed: int,
    candidates: list[Float32],
) -> Float32:
    """Attack every image through the purifier; images [N, C, H, W] that are closest to a wrong label.

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
    result = adaptive_attack(
        Jury(view),
        view,
        _plan(),
        data,
        eps=eps,
        budget=budget,
        seed=seed,
        candidates=candidates,
    )
    return result.images


def attack_in_words(settings: ChoiceSettings) -> str:
    """What the attacker did, for the manifest."""
    return (
        f"PGD without the purifier, then Auto-PGD on the mean log-probability of classifier and members "
        f"({', '.join(descent.name for descent in _plan())}), {settings.steps} steps each, {settings.restarts} "
        f"restart{'s' if settings.restarts > 1 else ''}; what was found for one purifier is tried on all others"
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


def _plan() -> list[Descent]:
    """Descents; 'exact' is the gradient of every step of the purifier, 'straight_through' the same past its clamps."""
    agreement, targeted = agreement_objective(), targeted_agreement_objective()
    return [
        Descent(agreement, "exact", "random"),
        Descent(agreement, "straight_through", "best"),
        Descent(targeted, "exact", "best", target=0),
        Descent(targeted, "straight_through", "random", target=0),
    ]
