"""Labels of a data set in the order of a network's outputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Int64
from s2ap_train.data.source import DataSource, Subset

__all__ = ["in_order"]


def in_order(source: DataSource, classes: tuple[str, ...]) -> DataSource:
    """The data set with its labels numbered as in a list of names; where its own names are numbers, they get names.

    Raises:
        RecipeError: If a name is repeated, or the names are not those of the data.
    """
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise RecipeError(f"data.classes names {repeated[0]!r} twice; give every class one name")
    own = source.classes
    unnamed = own == tuple(map(str, range(len(own))))
    if set(classes) != set(own):
        if unnamed and len(classes) == len(own):
            return replace(source, classes=classes)
        missing = sorted(set(own) - set(classes))
        unknown = sorted(set(classes) - set(own))
        parts = [f"it lacks {', '.join(missing[:3])}"] if missing else []
        parts += [f"{source.name} has no {', '.join(unknown[:3])}"] if unknown else []
        raise RecipeError(
            f"data.classes names {len(classes)} classes, {source.name} has {len(own)}: {'; '.join(parts)}; name the "
            "folders as the list does"
        )
    number = np.array([classes.index(name) for name in own], dtype=np.int64)

    def renumbered(part: Subset) -> Subset:
        labels: Int64 = number[part.labels]
        return replace(part, labels=labels)

    test = None if source.test is None else renumbered(source.test)
    return replace(source, training=renumbered(source.training), test=test, classes=classes)
