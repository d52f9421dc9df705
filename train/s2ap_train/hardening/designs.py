"""Designs of a decision that could never decide, or never be written, known before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator

from s2ap_train.calibration.evidence import SMOOTHING
from s2ap_train.calibration.kinds import evidence_bins, rules
from s2ap_train.calibration.settings import Detection
from s2ap_train.hardening.fitting_attacks import COPIES
from s2ap_train.recipe import Recipe

__all__ = ["largest_evidence", "undecidable", "undecided", "unwritable"]


def undecided(recipe: Recipe, fit: int) -> Iterator[str]:
    """Sequential tests that could not decide, whatever members say.

    Args:
        recipe: What is to be done.
        fit: Fitting images.
    """
    families = recipe.members.values()
    trained = 1 + sum(family.count for family in families)
    if trained == 1:
        return  # refused where members are trained: the recipe has none
    fixed = rules(recipe.detection, trained)
    limited = fixed.members < trained
    there = f"detection.n_max keeps {fixed.members} of {trained} members" if limited else f"there are {trained} members"
    if fixed.min_accept > fixed.members:
        more = "detection.n_max" if limited else "members"
        yield (
            f"detection.min_accept is {fixed.min_accept} and {there}: nothing could be decided as clean before all "
            f"were asked; set detection.min_accept to {fixed.members} or less, or give more {more}"
        )
    jurors = 1 + sum(family.count for family in families if family.role == "juror")
    openings = {"decision.opening": recipe.decision.opening} | {
        f"decision_choice.opening[{place}]": one
        for place, one in enumerate(recipe.decision_choice.opening)
        if one <= jurors
    }
    for key, value in openings.items():
        opening = min(value, jurors)
        if opening > fixed.members:
            yield f"{key} asks {opening} jurors first and {there}; set {key} to {fixed.members} or less"
    yield from undecidable(recipe.detection, fixed.members, fit)


def unwritable(recipe: Recipe) -> Iterator[str]:
    """Wirings that no file can have."""
    if not recipe.purifier.off and recipe.decision.contradiction is not None:
        yield recipe.decision.contradiction


def undecidable(detection: Detection, members: int, fit: int) -> Iterator[str]:
    """Decisions that no answers could reach: the evidence that so few images can give a member bounds what it says.

    Args:
        detection: The test; kinds whose boundaries are calibrated, and 'paper', which truncates, always decide.
        members: Of the test.
        fit: Fitting images.
    """
    if detection.kind in {"conformal", "paper"} or fit < 1:
        return
    fixed = rules(detection, members)
    for name, step, level, key in (
        ("adversarial", largest_evidence(COPIES * fit, fit, evidence_bins(detection)), fixed.upper, "alpha"),
        ("clean", largest_evidence(fit, COPIES * fit, evidence_bins(detection)), -fixed.lower, "beta"),
    ):
        if members * step < level:
            yield (
                f"detection.{key} {getattr(detection, key):g} puts the boundary of {name!r} at {level:.2f} nats, and "
                f"{members} members fitted on {fit} images say {members * step:.2f} at most; it takes "
                f"{math.ceil(level / step)} members, more data.fit, or a larger detection.{key}"
            )


def largest_evidence(of: int, against: int, bins: int) -> float:
    """The largest log-likelihood ratio, nats, that one answer can have after so many inputs of either kind.

    All inputs of the one kind lie in a bin and none of the other does.

    Args:
        of: Inputs that the ratio speaks for.
        against: Inputs that it speaks against.
        bins: Bins of the member.
    """
    return math.log((of + SMOOTHING) / (of + SMOOTHING * bins) * (against + SMOOTHING * bins) / SMOOTHING)
