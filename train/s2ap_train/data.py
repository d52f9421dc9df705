"""Image sets and their splits. No test image enters training, selection, fitting or calibration."""

from dataclasses import dataclass

import numpy as np

from s2ap_defend.types import Float32, Int64


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


@dataclass(frozen=True)
class Splits:
    """One data set in five disjoint parts.

    Attributes:
        train: For weights, masks and the score model.
        validation: For choosing weights, masks and settings.
        fit: For the order of the members, their bins and increments.
        calibration: For the boundary that sets the false-alarm rate; nothing else may see it.
        test: For the figures that are reported.
        classes: Class names by label.
        name: What the data is, for the manifest.
    """

    train: ImageSet
    validation: ImageSet
    fit: ImageSet
    calibration: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    name: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def load_digits(seed: int = 0) -> Splits:
    """scikit-learn's bundled digits: 1,797 real 8x8 grey images of 0-9 (UCI, Alpaydin and Kaynak 1998).

    Split with `seed` into train 900, validation 100, fit 150, calibration 247, test 400.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = (bunch.images[:, None] / 16.0).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    return split(ImageSet(images, labels), (900, 100, 150, 247, 400), tuple("0123456789"), "digits", seed=seed)


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
