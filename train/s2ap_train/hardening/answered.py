"""What trained networks answer right of held-out images, and what cannot be calibrated on so few."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.right_images import Classifier, classified_right
from s2ap_train.calibration.boundaries import samples_needed
from s2ap_train.calibration.possible import FEWEST
from s2ap_train.data import ImageSet, Splits
from s2ap_train.hardening.feasibility import together
from s2ap_train.recipe import Recipe

__all__ = ["Answered", "answered_by", "check_answered", "few_answers"]


@dataclass(frozen=True)
class Answered:
    """Held-out images that the best of some networks gets right.

    Attributes:
        fit: Of the fitting part.
        calibration: Of the calibration part.
    """

    fit: int
    calibration: int


def check_answered(recipe: Recipe, splits: Splits, answered: Answered) -> None:
    """Refuse networks that answer too few held-out images to calibrate on, before anything is attacked.

    Arguments as for `few_answers`.

    Raises:
        RecipeError: With every problem.
    """
    found = [*few_answers(recipe, splits, answered)]
    if found:
        raise RecipeError(together(recipe, splits, found))


def few_answers(recipe: Recipe, splits: Splits, answered: Answered) -> Iterator[str]:
    """Calibrations that will lack images which are answered right, a sentence each.

    Args:
        recipe: What is to be done.
        splits: Its data.
        answered: What the best of its networks gets right.
    """
    if answered.fit < FEWEST:
        yield _more("fit", len(splits.fit), answered.fit, FEWEST, "evidence is fitted")
    counted = answered.calibration if recipe.detection.calibrate_on == "correct" else len(splits.calibration)
    if recipe.detection.kind == "conformal" and counted < samples_needed(recipe.detection.alpha):
        needed = samples_needed(recipe.detection.alpha)
        what = f"detection.alpha {recipe.detection.alpha:g} is kept"
        yield _more("calibration", len(splits.calibration), counted, needed, what)


def answered_by(networks: Sequence[Classifier], splits: Splits) -> Answered:
    """Held-out images that the best of these networks gets right."""

    def best(part: ImageSet) -> int:
        return max(int(classified_right(one, part.images, part.labels).sum()) for one in networks)

    return Answered(best(splits.fit), best(splits.calibration))


def _more(part: str, images: int, found: int, needed: int, what: str) -> str:
    share = found / images if images else 0.0
    ask = f"{math.ceil(needed / share)} or more" if share > 0 else "more"
    return (
        f"no network gets more than {found} of the {images} images of data.{part} right, and {what} with {needed}; set "
        f"data.{part} to {ask}, train longer, or choose a better classifier"
    )
