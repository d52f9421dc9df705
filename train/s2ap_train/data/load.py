"""From settings to splits."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32, Int64
from s2ap_train.data.arrays import open_npz
from s2ap_train.data.class_order import in_order
from s2ap_train.data.digits import load_digits
from s2ap_train.data.folders import open_folder
from s2ap_train.data.image_set import ImageSet, Splits
from s2ap_train.data.settings import DataSettings
from s2ap_train.data.source import DataSource, OnRead, Subset, array_subset, check_labels
from s2ap_train.data.splitting import cut, stratified
from s2ap_train.data.torchvision_sets import open_cifar, open_fashion_mnist, open_svhn

OnProgress = Callable[[int, int], None]
_LOG = logging.getLogger(__name__)

LARGEST_SEED = 2**32 - 1
"""Of the random numbers of every library that is used."""


def load_data(settings: DataSettings | str, seed: int, on_progress: OnProgress | None = None) -> Splits:
    """Read a data set and cut it into its five parts.

    The test part is the data set's own where it has one, and cut with the seed otherwise; validation, fit and
    calibration are always cut from what remains. Only the images of the chosen rows are read. Test images that also
    lie in another part, pixel by pixel, are counted and logged as a warning: published data sets have some.

    Args:
        settings: The data set, or the name of its source.
        seed: Of the split, from 0 to LARGEST_SEED.
        on_progress: Called with (images read, images to read) every few images.

    Raises:
        RecipeError: If the data is missing or broken, or cannot be cut like this.
    """
    settings = DataSettings.model_validate(settings)
    if not 0 <= seed <= LARGEST_SEED:
        raise RecipeError(f"seed is {seed}; give a number from 0 to {LARGEST_SEED}")
    if settings.source == "digits":
        return _digits(settings, seed)
    with ExitStack() as opened:
        source = open_source(settings, opened)
        rows = cut(
            source.training.labels,
            None if source.test is None else source.test.labels,
            classes=source.classes,
            held_out={"validation": settings.validation, "fit": settings.fit, "calibration": settings.calibration},
            train_limit=settings.train_limit,
            test_limit=settings.test_limit,
            seed=seed,
        )
        total = sum(map(len, vars(rows).values()))
        on_read = _counter(total, on_progress)
        splits = Splits(
            train=_read(source.training, rows.train, on_read),
            validation=_read(source.training, rows.validation, on_read),
            fit=_read(source.training, rows.fit, on_read),
            calibration=_read(source.training, rows.calibration, on_read),
            test=_read(source.test or source.training, rows.test, on_read),
            classes=source.classes,
            name=source.name,
            resize=None if settings.resizing is None else settings.resizing.how,
        )
    shared = count_shared(splits)
    if shared:
        _LOG.warning(
            "%d of %d test images of %s are also among the images that are trained, chosen or calibrated on",
            shared,
            len(splits.test),
            splits.name,
        )
    return splits


def count_shared(splits: Splits) -> int:
    """Test images that are pixel by pixel also in another part."""
    seen = {_digest(image) for name, subset in splits.by_name.items() if name != "test" for image in subset.images}
    return sum(_digest(image) in seen for image in splits.test.images)


def _digest(image: Float32) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def open_source(settings: DataSettings, opened: ExitStack) -> DataSource:
    """Open a data set that lies in files; `opened` closes them.

    Raises:
        RecipeError: If it is missing or broken.
    """
    if not settings.roots:
        raise RecipeError(
            f"data.root is missing; say where the data set {settings.source!r} lies, with --data PATH or data.root"
        )
    source = _opened(settings, opened)
    return source if settings.classes is None else in_order(source, settings.classes)


def _opened(settings: DataSettings, opened: ExitStack) -> DataSource:
    resizing = settings.resizing
    match settings.source:
        case "cifar10" | "cifar100":
            return open_cifar(settings.source, settings.roots[0], resizing, checksums=settings.checksums)
        case "svhn":
            return open_svhn(settings.roots[0], resizing, checksums=settings.checksums)
        case "fashion-mnist":
            return open_fashion_mnist(settings.roots[0], resizing, checksums=settings.checksums)
        case "npz":
            return open_npz(settings.roots[0], resizing)
        case _:
            return open_folder(
                settings.roots, opened, resizing=resizing, channels=settings.channels, on_white=settings.on_white
            )


def _digits(settings: DataSettings, seed: int) -> Splits:
    splits = load_digits(seed, validation=settings.validation, fit=settings.fit, calibration=settings.calibration)
    if settings.resizing is None and settings.train_limit is None and settings.test_limit is None:
        return splits

    def prepared(part: ImageSet, limit: int | None = None, stream: int = 0) -> ImageSet:
        rows = np.arange(len(part))
        if limit is not None:
            rows, _ = stratified(part.labels, rows, limit, np.random.default_rng([seed, stream]))
        return _read(array_subset(part.images, part.labels, channels_last=False, resizing=settings.resizing), rows)

    train = prepared(splits.train, settings.train_limit, 0)
    check_labels(train.labels, splits.classes, f"the training part with data.train_limit {settings.train_limit}")
    return replace(
        splits,
        train=train,
        validation=prepared(splits.validation),
        fit=prepared(splits.fit),
        calibration=prepared(splits.calibration),
        test=prepared(splits.test, settings.test_limit, 1),
        resize=None if settings.resizing is None else settings.resizing.how,
    )


def _read(part: Subset, rows: Int64, on_read: OnRead = lambda _: None) -> ImageSet:
    return ImageSet(part.read(rows, on_read), part.labels[rows])


def _counter(total: int, on_progress: OnProgress | None) -> OnRead:
    done = 0

    def on_read(more: int) -> None:
        nonlocal done
        done += more
        if on_progress is not None:
            on_progress(done, total)

    return on_read
