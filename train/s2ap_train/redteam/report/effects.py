"""What parts of the chain do to a figure, and how the file stands beside its own pruned classifier, in sentences."""

from __future__ import annotations

import math

from s2ap_train.redteam.ablation.costs import LABELS, PAIRS
from s2ap_train.redteam.results import Evaluation, PartCost
from s2ap_train.statistics.paired import NOISE, PairedDifference

__all__ = [
    "against_pruned_in_words",
    "below",
    "cost_in_words",
    "labels_against_pruned",
    "labels_against_pruned_in_words",
    "percent",
]

_INSTEAD_OF_PRUNED = next(part for part, _, _, _ in PAIRS if "S2AP-pruned" in part)


def labels_against_pruned(evaluation: Evaluation) -> PairedDifference | None:
    """Label accuracy of a file that corrects against that of its own pruned classifier; None: not that, or unmeasured.

    The pair is of the row that corrects. That row is the file where it has the file's label accuracy: who rejects has
    no image right that who corrects has not, so equal shares are the same images.
    """
    for cost in evaluation.costs:
        served = cost.effect.after == evaluation.worst_case.label_accuracy
        if cost.part == _INSTEAD_OF_PRUNED and cost.measure == LABELS and served:
            return cost.effect
    return None


def against_pruned_in_words(effect: PairedDifference) -> str:
    """Whether the full defence is above or below its own S2AP-pruned classifier, beyond noise (p < .05) or not."""
    return (
        f"Robust accuracy of the full defence is {_standing(effect)} that of its own S2AP-pruned, adversarially "
        f"trained classifier: {_change(effect)}. An image that is flagged, or not answered, counts as held."
    )


def labels_against_pruned_in_words(effect: PairedDifference) -> str:
    """The same of final labels, flagged or not."""
    return (
        f"Label accuracy of the full defence, which corrects what it flags, is {_standing(effect)} that of its own "
        f"S2AP-pruned classifier: {_change(effect)}. To be flagged does not count here."
    )


def cost_in_words(cost: PartCost) -> str:
    """What one part of the chain does to a figure, beyond noise (p < .05) or not."""
    effect = cost.effect
    if not _beyond(effect):
        return f"{cost.part}: changes {cost.measure} by no more than noise, {_change(effect)}"
    verb = "LOWERS" if effect.difference < 0 else "raises"
    return f"{cost.part}: {verb} {cost.measure} beyond noise, {_change(effect)}"


def below(effect: PairedDifference | None) -> bool:
    """Whether the second system is the worse one, beyond noise."""
    return effect is not None and effect.difference < 0 and _beyond(effect)


def percent(share: float) -> str:
    """A share such as '91.7%'; '-' where there is none."""
    return "-" if math.isnan(share) else f"{100 * share:.1f}%"


def _standing(effect: PairedDifference) -> str:
    if not effect.difference:
        return "level with"
    return f"{'BELOW' if effect.difference < 0 else 'above'}, {'beyond' if _beyond(effect) else 'within'} noise,"


def _change(effect: PairedDifference) -> str:
    low, high = effect.interval
    return (
        f"from {percent(effect.before)} to {percent(effect.after)} ({100 * effect.difference:+.1f} points, 95 % "
        f"interval {100 * low:+.1f} to {100 * high:+.1f}; of {effect.samples} images {effect.gained} gained, "
        f"{effect.lost} lost; exact McNemar p = {effect.p_value:.2g})"
    )


def _beyond(effect: PairedDifference) -> bool:
    return effect.p_value < NOISE
