"""Jurors that training left at chance: pruned too far, or with too large steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from s2ap_train.calibration import Weakness
from s2ap_train.data import Splits
from s2ap_train.hardening.part_names import PRUNED, member_name
from s2ap_train.recipe import Recipe

__all__ = ["unlearned"]


def unlearned(recipe: Recipe, accuracies: Sequence[float], splits: Splits) -> Iterator[Weakness]:
    """Jurors at chance on validation images: right on no more than the commonest class has. Sensors then say nothing.

    Args:
        recipe: What they were trained by.
        accuracies: Of the pruned classifier, then of the members in the order of the recipe, on validation images.
        splits: The data.
    """
    labels = splits.validation.labels
    images, chance = len(labels), np.bincount(labels).max() / len(labels)
    families = [(name, i) for name, family in recipe.members.items() for i in range(family.count)]
    tables = ["pruning", *(f"members.{name}" for name, _ in families)]
    names = [PRUNED, *(member_name(*one) for one in families)]
    jurors = [True, *(recipe.members[name].role == "juror" for name, _ in families)]
    for name, table, accuracy, juror in zip(names, tables, accuracies, jurors, strict=True):
        if juror and accuracy <= chance:
            yield Weakness(
                part="members",
                found=(
                    f"{name} is right on {accuracy:.1%} of {images} validation images, which is chance "
                    f"for {len(splits.classes)} classes"
                ),
                instead="its answers are worth nothing and are counted all the same",
                cure=f"remove less or take smaller steps ({table}), or train longer",
            )
