"""Cutting a data set into its parts: by permutation for the digits, stratified by class for everything else."""

from dataclasses import dataclass

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Int64
from s2ap_train.data.image_set import ImageSet, Splits

HELD_OUT = ("validation", "fit", "calibration")
_DEFAULT_SHARE = 20  # a held-out part is a twentieth of the training images
_TEST_SHARE = 5  # a data set without a test part of its own gives a fifth


@dataclass(frozen=True)
class Rows:
    """Which rows of the training and of the test part become what; every row at most once.

    Attributes:
        train: Rows of the training part, as are `validation`, `fit` and `calibration`.
        test: Rows of the test part, or of the training part where the data set has no test part.
    """

    train: Int64
    validation: Int64
    fit: Int64
    calibration: Int64
    test: Int64


def split(
    data: ImageSet, sizes: tuple[int, int, int, int, int], classes: tuple[str, ...], name: str, *, seed: int
) -> Splits:
    """Shuffle with `seed` and cut into train, validation, fit, calibration and test of the given sizes.

    Raises:
        ValueError: If the sizes do not sum to the number of images.
    """
    if sum(sizes) != len(data):
        raise ValueError(f"split sizes {sizes} sum to {sum(sizes)}, the data has {len(data)} images")
    order = np.random.default_rng(seed).permutation(len(data))
    train, validation, fit, calibration, test = (data.subset(i) for i in np.split(order, np.cumsum(sizes)[:-1]))
    return Splits(train, validation, fit, calibration, test, classes=classes, name=name)


def cut(
    training: Int64,
    test: Int64 | None,
    *,
    classes: tuple[str, ...],
    held_out: dict[str, int | None],
    train_limit: int | None,
    test_limit: int | None,
    seed: int,
) -> Rows:
    """Choose the rows of every part by their labels, before any image is read.

    Each part keeps the classes' shares, and is shuffled, so that its first n rows are a random sample. Training and
    test rows are drawn from streams of their own, and held-out rows before training rows: a limit changes nothing but
    the part that it limits, given held-out sizes and a test part. One image of every class is kept for training.

    Args:
        training: Labels of the data set's training part [N], every class among them.
        test: Labels of its test part [M]; None cuts `test_limit` images, or a fifth, off the training part.
        classes: Class names by label.
        held_out: Images of 'validation', 'fit' and 'calibration'; None is a twentieth of the training part, or of
            `train_limit` where that is smaller.
        train_limit: At most so many training rows.
        test_limit: At most so many test rows.
        seed: Of the choice.

    Raises:
        RecipeError: If not one image of every class would be left to train on.
    """
    if train_limit is not None and train_limit < len(classes):
        raise RecipeError(f"data.train_limit {train_limit} leaves some of {len(classes)} classes no image; take more")
    draw, draw_test = (np.random.default_rng([seed, stream]) for stream in range(2))
    order = draw.permutation(len(training))
    _, first = np.unique(training[order], return_index=True)
    kept, left = order[first], np.delete(order, first)
    if test is None:
        size = test_share(len(training), test_limit)
        _check_sizes({"test": size}, len(left), len(kept))
        test_rows, left = stratified(training, left, size, draw_test)
    else:
        test_rows, _ = stratified(test, np.arange(len(test)), test_limit or len(test), draw_test)
    usable = len(left) + len(kept)
    default = max(min(usable, train_limit or usable) // _DEFAULT_SHARE, 1)
    sizes = {name: held_out[name] or default for name in HELD_OUT}
    _check_sizes(sizes, len(left), len(kept))
    chosen = {}
    for name in reversed(HELD_OUT):
        chosen[name], left = stratified(training, left, sizes[name], draw)
    more, _ = stratified(training, left, len(left) if train_limit is None else train_limit - len(kept), draw)
    train_rows = draw.permutation(np.concatenate([kept, more]))
    return Rows(train_rows, chosen["validation"], chosen["fit"], chosen["calibration"], test_rows)


def test_share(images: int, limit: int | None) -> int:
    """Test images that are cut off a data set without a test part of its own."""
    return limit or max(images // _TEST_SHARE, 1)


def stratified(labels: Int64, rows: Int64, size: int, generator: np.random.Generator) -> tuple[Int64, Int64]:
    """Choose `size` of `rows` so that every class keeps its share: (chosen, the rest), shuffled.

    Shares are rounded by largest remainder, ties at random.

    Args:
        labels: Labels of the whole data set [N].
        rows: Row numbers to choose from [M].
        size: How many; from M on, all are chosen.
        generator: Of the choice and the order.
    """
    rows = generator.permutation(rows)
    size = min(size, len(rows))
    if size == len(rows):
        return rows, rows[:0]
    counts = np.bincount(labels[rows])
    quotas = size * counts
    take, remainders = quotas // len(rows), quotas % len(rows)
    missing = size - int(take.sum())
    order = generator.permutation(len(counts))
    take[order[np.argsort(-remainders[order], kind="stable")[:missing]]] += 1
    # rank of every row within its class, in the shuffled order
    by_class = np.argsort(labels[rows], kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.empty(len(rows), dtype=np.int64)
    rank[by_class] = np.arange(len(rows)) - np.repeat(starts, counts)
    chosen = rank < take[labels[rows]]
    return rows[chosen], rows[~chosen]


def _check_sizes(sizes: dict[str, int], left: int, classes: int) -> None:
    if sum(sizes.values()) > left:
        parts = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise RecipeError(
            f"{parts} together are more than {left}, the training part's {left + classes} images without one of each "
            f"of its {classes} classes; take smaller parts or more images"
        )
