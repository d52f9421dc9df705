"""What a recipe cannot do with its data, known before anything is trained.

Every problem names the key that is to be changed and the number that is needed, and all of them are told at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass

import numpy as np
from pydantic import BaseModel

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.right_images import Classifier, classified_right
from s2ap_train.calibration.boundaries import samples_needed
from s2ap_train.calibration.calibration import FEWEST
from s2ap_train.calibration.evidence import SMOOTHING
from s2ap_train.calibration.kinds import evidence_bins, rules
from s2ap_train.calibration.settings import Detection
from s2ap_train.data import ImageSet, Splits
from s2ap_train.ensemble import MemberFamily
from s2ap_train.hardening.fitting_attacks import COPIES
from s2ap_train.recipe import EnsembleRecipe, Recipe
from s2ap_train.training import TrainingConfig

__all__ = ["Answered", "answered_by", "check_answered", "check_feasible", "problems", "weaknesses"]

FEWEST_IN_A_BIN = 5
"""Fitting images for each bin of evidence (Cochran 1952)."""
FEWEST_ATTACKED = 10
"""Images that purifiers and the file are attacked on, as `choice.samples` and `evaluation.samples` start."""
_COPIED = 3
"""Times that what all networks say of all images lies in memory while a test is calibrated."""


@dataclass(frozen=True)
class Answered:
    """Held-out images that the best of some networks gets right.

    Attributes:
        fit: Of the fitting part.
        calibration: Of the calibration part.
    """

    fit: int
    calibration: int


def check_feasible(recipe: Recipe, splits: Splits, *, by_validation: bool = True) -> None:
    """Refuse a recipe that would train everything and then make no file.

    Args:
        recipe: What is to be done.
        splits: Its data.
        by_validation: Whether purifiers are attacked on validation images.

    Raises:
        RecipeError: With every problem.
    """
    found = problems(recipe, splits, by_validation=by_validation)
    if found:
        raise RecipeError(_together(recipe, splits, found))


def check_answered(recipe: Recipe, splits: Splits, answered: Answered) -> None:
    """Refuse networks that answer too few held-out images to calibrate on, before anything is attacked.

    Args:
        recipe: What is to be done.
        splits: Its data.
        answered: What the best of its networks gets right.

    Raises:
        RecipeError: With every problem.
    """
    found: list[str] = []
    if answered.fit < FEWEST:
        found.append(_more("fit", len(splits.fit), answered.fit, FEWEST, "evidence is fitted"))
    counted = answered.calibration if recipe.detection.calibrate_on == "correct" else len(splits.calibration)
    if recipe.detection.kind == "conformal" and counted < samples_needed(recipe.detection.alpha):
        needed = samples_needed(recipe.detection.alpha)
        what = f"detection.alpha {recipe.detection.alpha:g} is kept"
        found.append(_more("calibration", len(splits.calibration), counted, needed, what))
    if found:
        raise RecipeError(_together(recipe, splits, found))


def answered_by(networks: Sequence[Classifier], splits: Splits) -> Answered:
    """Held-out images that the best of these networks gets right."""

    def best(part: ImageSet) -> int:
        return max(int(classified_right(one, part.images, part.labels).sum()) for one in networks)

    return Answered(best(splits.fit), best(splits.calibration))


def problems(
    recipe: Recipe, splits: Splits, *, by_validation: bool = True, memory_bytes: float | None = None
) -> list[str]:
    """What cannot work, a sentence each, with the key and the number that is needed; none: it can.

    Args:
        recipe: What is to be done.
        splits: Its data.
        by_validation: Whether purifiers are attacked on validation images.
        memory_bytes: Memory of the machine; None asks it.
    """
    memory = _memory_bytes() if memory_bytes is None else memory_bytes
    return [
        *_of_classes(splits),
        *_of_batches(recipe, len(splits.train)),
        *_of_parts(recipe, splits, by_validation=by_validation),
        *_of_design(recipe, splits),
        *_of_memory(recipe, splits, memory),
    ]


def weaknesses(splits: Splits) -> list[str]:
    """What can be done and is worth less than it looks, a sentence each."""
    found = []
    for name, part in splits.by_name.items():
        missing = len(splits.classes) - len(np.unique(part.labels))
        if name != "train" and missing:
            found.append(
                f"{missing} of {len(splits.classes)} classes have no image among the {len(part)} of the {name} part: "
                f"nothing is {_USED_FOR[name]} on them; {_key(name)} makes it larger"
            )
    return found


_USED_FOR = {"validation": "chosen", "fit": "fitted", "calibration": "calibrated", "test": "measured"}


def _together(recipe: Recipe, splits: Splits, found: Sequence[str]) -> str:
    images = sum(map(len, splits.by_name.values()))
    head = f"recipe {recipe.name} cannot work with {images} images of {len(splits.classes)} classes"
    if len(found) == 1:
        return f"{head}: {found[0]}"
    return f"{head}, for {len(found)} reasons: " + "; ".join(f"({i}) {one}" for i, one in enumerate(found, 1))


def _of_classes(splits: Splits) -> Iterator[str]:
    if len(splits.classes) < 2:
        yield f"the data has {len(splits.classes)} class; a classifier needs 2 or more"
    counts = np.bincount(splits.train.labels, minlength=len(splits.classes))
    missing = [splits.classes[i] for i in np.flatnonzero(counts == 0)]
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        yield f"no training image of class {names}; give one of each class at least, or leave the class out"


def _of_batches(recipe: EnsembleRecipe, images: int) -> Iterator[str]:
    """Batches of one image, which batch normalisation cannot normalise."""
    for key, size in batch_sizes(recipe):
        smallest = images // math.ceil(images / size)
        if smallest < 2:
            yield (
                f"{key}.batch_size {size} cuts {images} training images into batches of {smallest}, which cannot be "
                "normalised; set it to 4 or more"
                if images > 3
                else f"{images} training images are too few for {key}; give 4 or more"
            )


def batch_sizes(settings: object, key: str = "") -> Iterator[tuple[str, int]]:
    """(Key, batch size) of every training of a classifier; families without members are not trained."""
    if isinstance(settings, MemberFamily) and settings.count == 0:
        return
    if isinstance(settings, TrainingConfig):
        yield key, settings.batch_size
    elif isinstance(settings, dict):
        for name, value in settings.items():
            yield from batch_sizes(value, f"{key}.{name}")
    elif isinstance(settings, BaseModel) or (is_dataclass(settings) and not isinstance(settings, type)):
        names = type(settings).model_fields if isinstance(settings, BaseModel) else [f.name for f in fields(settings)]
        for name in names:
            yield from batch_sizes(getattr(settings, name), f"{key}.{name}" if key else name)


def _of_parts(recipe: Recipe, splits: Splits, *, by_validation: bool) -> Iterator[str]:
    """Held-out parts with too few images."""
    detection, fit, held_out = recipe.detection, len(splits.fit), len(splits.calibration)
    if fit < FEWEST:
        yield (
            f"data.fit is {fit} images and evidence needs {FEWEST} that are answered right; set data.fit to {FEWEST} "
            "and as many more as will be answered wrong"
        )
    bins = evidence_bins(detection)
    if FEWEST <= fit < FEWEST_IN_A_BIN * bins:
        yield (
            f"data.fit is {fit} images, which leaves fewer than {FEWEST_IN_A_BIN} to each of {bins} bins of evidence; "
            f"set data.fit to {FEWEST_IN_A_BIN * bins} or more, or detection.bins to {fit // FEWEST_IN_A_BIN}"
        )
    if detection.kind == "conformal" and held_out < samples_needed(detection.alpha):
        needed = samples_needed(detection.alpha)
        counted = " that are answered right" if detection.calibrate_on == "correct" else ""
        yield (
            f"data.calibration is {held_out} images and detection.alpha {detection.alpha:g} needs {needed}{counted}; "
            f"set data.calibration to {needed} or more, or detection.alpha to {_least_alpha(held_out):g} or more"
        )
    if by_validation and len(splits.validation) < FEWEST_ATTACKED:
        yield (
            f"data.validation is {len(splits.validation)} images and purifiers are attacked on {FEWEST_ATTACKED} or "
            f"more; set data.validation to {FEWEST_ATTACKED}, or do not compare purifiers: --choose unmeasured"
        )
    if len(splits.test) < FEWEST_ATTACKED:
        yield (
            f"the test part has {len(splits.test)} images and the file is measured on {FEWEST_ATTACKED} or more; give "
            f"more, or set data.test_limit to {FEWEST_ATTACKED} where the test part is cut off"
        )


def _of_design(recipe: Recipe, splits: Splits) -> Iterator[str]:
    """Sequential tests that could not decide, whatever members say."""
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
    yield from undecidable(recipe.detection, fixed.members, len(splits.fit))


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


def _of_memory(recipe: Recipe, splits: Splits, memory_bytes: float) -> Iterator[str]:
    """Log-probabilities of every network on all images that the test is calibrated on, on the image and purified."""
    networks = 2 + sum(family.count for family in recipe.members.values())
    inputs = (1 + COPIES) * len(splits.fit) + len(splits.calibration)
    needed = _COPIED * 2 * 4 * networks * inputs * len(splits.classes)
    if needed > memory_bytes:
        most = int(len(splits.fit) * memory_bytes / needed)
        yield (
            f"what {networks} networks say of {inputs} images in {len(splits.classes)} classes takes "
            f"{needed / 1e9:.1f} GB while the test is calibrated and this machine has {memory_bytes / 1e9:.1f}; set "
            f"data.fit (now {len(splits.fit)}) to {most} or less"
        )


def _memory_bytes() -> float:
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # not told on this system
        return math.inf


def _least_alpha(samples: int) -> float:
    """The smallest false-alarm rate that so many inputs allow, 1 / (n + 1) rounded up to four decimals."""
    return math.ceil(1e4 / (samples + 1)) / 1e4


def _key(part: str) -> str:
    return "data.test_limit" if part == "test" else f"data.{part}"


def _more(part: str, images: int, found: int, needed: int, what: str) -> str:
    share = found / images if images else 0.0
    ask = f"{math.ceil(needed / share)} or more" if share > 0 else "more"
    return (
        f"no network gets more than {found} of the {images} images of data.{part} right, and {what} with {needed}; set "
        f"data.{part} to {ask}, train longer, or choose a better classifier"
    )
