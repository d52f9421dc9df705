"""Differences on the same images, in sentences."""

from __future__ import annotations

from s2ap_train.redteam.report.words import percent
from s2ap_train.redteam.rows import PartCost
from s2ap_train.statistics.paired import NOISE, PairedDifference, images_needed, two_digits

__all__ = ["beyond", "change", "cost_in_words", "needed", "points", "standing"]


def cost_in_words(cost: PartCost) -> str:
    """What one part of the chain does to a figure, beyond noise (p < .05) or not."""
    effect = cost.effect
    if not beyond(effect):
        return f"{cost.part}: changes {cost.measure} by no more than noise, {change(effect)}"
    verb = "LOWERS" if effect.difference < 0 else "raises"
    return f"{cost.part}: {verb} {cost.measure} beyond noise, {change(effect)}"


def beyond(effect: PairedDifference) -> bool:
    """Whether a difference is beyond noise."""
    return effect.p_value < NOISE


def standing(effect: PairedDifference) -> str:
    """'above', 'below', or 'not above' where the difference is no more than noise."""
    if not beyond(effect):
        return "not above"
    return "above" if effect.difference > 0 else "below"


def needed(effect: PairedDifference) -> str:
    """How many images it would take to tell a gain of this size from noise, roughly."""
    count = images_needed(effect)
    if count is None:
        return "No gain was found that more images could confirm."
    return (
        f"If the gain is as large as it was found, about {two_digits(count)} images are needed to tell it from noise."
    )


def points(effect: PairedDifference) -> str:
    """The difference with its p-value, such as '+2.7 points, p = 0.29'."""
    return f"{100 * effect.difference:+.1f} points, p = {effect.p_value:.2g}"


def change(effect: PairedDifference) -> str:
    """The difference with all that it rests on."""
    low, high = effect.interval
    return (
        f"from {percent(effect.before)} to {percent(effect.after)} ({100 * effect.difference:+.1f} points, 95 % "
        f"interval {100 * low:+.1f} to {100 * high:+.1f}; of {effect.samples} images {effect.gained} gained, "
        f"{effect.lost} lost; exact McNemar p = {effect.p_value:.2g})"
    )
