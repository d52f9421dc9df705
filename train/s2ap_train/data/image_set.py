"""Image sets and their splits. No test image enters training, selection, fitting or calibration."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from s2ap_defend.types import Float32, Int64, Resize


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels.

    Attributes:
        images: float32 [N, C, H, W] in [0, 1].
        labels: int64 [N].
    """

    images: Float32
    labels: Int64

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: slice | Int64) -> "ImageSet":
        """Return the chosen rows."""
        return ImageSet(self.images[index], self.labels[index])

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal digest of the bytes of all images and then of all labels, worked out once."""
        return _sha256(self.images, self.labels)


@dataclass(frozen=True)
class Splits:
    """One data set in five disjoint subsets.

    Attributes:
        train: For weights, masks and the score model.
        validation: For choosing weights, masks and settings.
        fit: For the order of the members, their bins and increments.
        calibration: For the boundary that sets the false-alarm rate; nothing else may see it.
        test: For the figures that are reported.
        classes: Class names by label.
        name: What the data is, for the manifest.
        resize: How images of other sizes were brought to this one; None: they were taken as they are.
    """

    train: ImageSet
    validation: ImageSet
    fit: ImageSet
    calibration: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    name: str
    resize: Resize | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def by_name(self) -> dict[str, ImageSet]:
        """The five subsets in the order of the fields."""
        return {
            "train": self.train,
            "validation": self.validation,
            "fit": self.fit,
            "calibration": self.calibration,
            "test": self.test,
        }

    @cached_property
    def digests(self) -> dict[str, tuple[str, str]]:
        """SHA-256 of the pixels and of the labels of every subset by name, worked out once."""
        return {name: (_sha256(subset.images), _sha256(subset.labels)) for name, subset in self.by_name.items()}

    def sha256(self, *names: str) -> str:
        """SHA-256 over the pixels and labels of the named subsets, or of all.

        Shapes and names of classes are not in it.
        """
        chosen = [subset for name, subset in self.by_name.items() if not names or name in names]
        return _sha256(*(values for subset in chosen for values in (subset.images, subset.labels)))


def _sha256(*arrays: Float32 | Int64) -> str:
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
