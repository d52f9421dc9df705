"""Small data sets of few images or many classes, as users have them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s2ap_train.data import ImageSet, Splits


def write_npz(path: Path, counts: Sequence[int], *, side: int = 8) -> Path:
    """An .npz file of grey images: a pattern a class, under noise.

    Args:
        path: Where it is written.
        counts: Images of every class.
        side: Of an image.
    """
    labels, images = patterns(counts, side=side)
    np.savez(path, images=np.rint(255 * images[:, 0]).astype(np.uint8), labels=labels)
    return path


def patterns(counts: Sequence[int], *, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(Labels [N], images float32 [N, 1, side, side]), in a random order."""
    generator = np.random.default_rng(0)
    pattern = generator.random((len(counts), 1, side, side))
    labels = generator.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    noise = 0.15 * generator.standard_normal((len(labels), 1, side, side))
    return labels, (pattern[labels] + noise).clip(0.0, 1.0).astype(np.float32)


def cut_splits(counts: Sequence[int], **sizes: int) -> Splits:
    """Patterns cut into parts of these sizes, in their order; training has the rest.

    Args:
        counts: Images of every class.
        sizes: Of 'validation', 'fit', 'calibration' and 'test'.
    """
    labels, images = patterns(counts)
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = ImageSet(images[start : start + size], labels[start : start + size])
        start += size
    train = ImageSet(images[start:], labels[start:])
    return Splits(train=train, **parts, classes=tuple(map(str, range(len(counts)))), name="patterns")
