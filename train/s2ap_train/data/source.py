"""A data set before its images are read: labels at once, pixels of chosen rows on demand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2ap_defend.errors import RecipeError
from s2ap_defend.resizing import resize, unit_range
from s2ap_defend.types import Float32, Int64, Resize

OnRead = Callable[[int], None]
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Resizing:
    """What becomes of images of other sizes.

    Attributes:
        sides: (height, width) of all images, pixels.
        how: See `Resize`.
    """

    sides: tuple[int, int]
    how: Resize

    def apply(self, images: NDArray[Any]) -> Float32:
        """Images [N, C, H, W], float32 in [0, 1] or uint8, as float32 [N, C, *sides]."""
        return resize(images, self.sides, self.how)


@dataclass(frozen=True)
class Subset:
    """The training or the test part of a data set.

    Attributes:
        labels: int64 [N].
        read: Images of the given rows, float32 [n, C, H, W] in [0, 1]; its second argument is called after every few
            images how many more are read.
    """

    labels: Int64
    read: Callable[[Int64, OnRead], Float32]


@dataclass(frozen=True)
class DataSource:
    """An opened data set.

    Attributes:
        training: What train, validation, fit and calibration are cut from.
        test: The data set's own test part; None where it has none.
        classes: Class names by label.
        name: What the data is.
    """

    training: Subset
    test: Subset | None
    classes: tuple[str, ...]
    name: str


def array_subset(
    images: NDArray[np.uint8] | Float32, labels: Int64, *, channels_last: bool, resizing: Resizing | None
) -> Subset:
    """A part whose images lie in memory.

    Args:
        images: uint8 in 0..255 or float32 in [0, 1]; [N, H, W, C] or [N, C, H, W].
        labels: int64 [N].
        channels_last: Whether C is the last dimension.
        resizing: Size that they are brought to; None takes them as they are.
    """

    def read(rows: Int64, on_read: OnRead) -> Float32:
        height, width, channels = images.shape[1:] if channels_last else (*images.shape[2:], images.shape[1])
        size = (height, width) if resizing is None else resizing.sides
        out = np.empty((len(rows), channels, *size), dtype=np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = images[rows[start : start + _ROWS_AT_ONCE]]
            some = some.transpose(0, 3, 1, 2) if channels_last else some
            out[start : start + len(some)] = unit_range(some) if resizing is None else resizing.apply(some)
            on_read(len(some))
        return out

    return Subset(labels, read)


def check_labels(labels: Int64, classes: tuple[str, ...], name: str) -> None:
    """Check that the labels of a training part number the classes and that every class has an image.

    Raises:
        RecipeError: With the first thing that is wrong.
    """
    if len(labels) == 0:
        raise RecipeError(f"{name} holds no images; it needs some of each of {len(classes)} classes")
    _check_range(labels, classes, name)
    if len(classes) < 2:
        raise RecipeError(f"{name} has {len(classes)} class, a classifier needs two or more")
    found = np.bincount(labels, minlength=len(classes))
    if not found.all():
        raise RecipeError(
            f"{name} has no image of class {classes[int(found.argmin())]!r} (label {int(found.argmin())} of "
            f"{len(classes)}); add some or remove the class"
        )


def check_test_labels(labels: Int64, classes: tuple[str, ...], name: str) -> None:
    """Check that the labels of a test part are the training part's; a class may lack test images.

    Raises:
        RecipeError: With the first thing that is wrong.
    """
    if len(labels) == 0:
        raise RecipeError(f"{name} holds no images; add test images")
    _check_range(labels, classes, name)


def _check_range(labels: Int64, classes: tuple[str, ...], name: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise RecipeError(
            f"{name} has labels from {low} to {high}, expected 0 to {len(classes) - 1}, those of the training images"
        )
