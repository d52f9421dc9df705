"""What a recipe cannot do with its data, known before anything is trained.

Every problem names the key that is to be changed and the number that is needed, and all of them are reported at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass

import numpy as np
from pydantic import BaseModel

from s2ap_defend.errors import RecipeError
from s2ap_train.calibration.boundaries import least_alpha, samples_needed
from s2ap_train.calibration.kinds import evidence_bins
from s2ap_train.calibration.possible import FEWEST, FEWEST_IN_A_BIN
from s2ap_train.data import Splits
from s2ap_train.ensemble import MemberFamily
from s2ap_train.hardening.designs import undecided, unwritable
from s2ap_train.hardening.fitting_attacks import COPIES
from s2ap_train.recipe import EnsembleRecipe, Recipe
from s2ap_train.training import TrainingConfig

__all__ = ["FEWEST_ATTACKED", "batch_sizes", "check_feasible", "problems", "together", "weaknesses"]

FEWEST_ATTACKED = 10
"""Images that purifiers and the file are attacked on, as `choice.samples` and `evaluation.samples` start."""
_COPIED = 3
"""Times that what all networks say of all images lies in memory while a test is calibrated."""


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
        raise RecipeError(together(recipe, splits, found))


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
        *undecided(recipe, len(splits.fit)),
        *unwritable(recipe),
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


def together(recipe: Recipe, splits: Splits, found: Sequence[str]) -> str:
    """All problems in one line."""
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
            f"set data.calibration to {needed} or more, or detection.alpha to {least_alpha(held_out):g} or more"
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
    except (AttributeError, OSError, ValueError):  # unknown on this system
        return math.inf


def _key(part: str) -> str:
    return "data.test_limit" if part == "test" else f"data.{part}"
