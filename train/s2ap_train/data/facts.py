"""What a data set is, before its images are read."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from s2ap_train.data.load import load_data, open_source
from s2ap_train.data.settings import DataSettings
from s2ap_train.data.splitting import test_share

__all__ = ["DataFacts", "data_facts"]


@dataclass(frozen=True)
class DataFacts:
    """Counts, shape and classes.

    Attributes:
        image_shape: (C, H, W).
        classes: Class names by label.
        training: Images that train, validation, fit and calibration are cut from.
        test: Images of the test part.
    """

    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    training: int
    test: int


def data_facts(settings: DataSettings) -> DataFacts:
    """Count the images of a data set by their labels, and decode one of them.

    Raises:
        RecipeError: If the data is missing or broken.
    """
    if settings.source == "digits":
        splits = load_data(settings, 0)
        labels = np.concatenate([part.labels for name, part in splits.by_name.items() if name != "test"])
        return DataFacts(splits.image_shape, splits.classes, len(labels), len(splits.test))
    with ExitStack() as opened:
        source = open_source(settings, opened)
        labels = source.training.labels
        test = test_share(len(labels), settings.test_limit) if source.test is None else len(source.test.labels)
        first = source.training.read(np.zeros(1, dtype=np.int64), lambda _: None)
        left = len(labels) - (test if source.test is None else 0)
        channels, height, width = first.shape[1:]
        return DataFacts((channels, height, width), source.classes, left, test)
