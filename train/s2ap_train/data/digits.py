"""scikit-learn's bundled digits."""

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_train.data.image_set import ImageSet, Splits
from s2ap_train.data.splitting import split

HELD_OUT_SIZES = {"validation": 100, "fit": 150, "calibration": 247}
TEST_SIZE = 400


def load_digits(
    seed: int = 0, *, validation: int | None = None, fit: int | None = None, calibration: int | None = None
) -> Splits:
    """scikit-learn's bundled digits: 1,797 real 8x8 grey images of 0-9 (UCI, Alpaydin and Kaynak 1998).

    Split with `seed` into train 900, validation 100, fit 150, calibration 247, test 400. Other held-out sizes take from
    the training images or give to them; the test images stay the same.

    Raises:
        RecipeError: If the held-out parts leave fewer than 10 images to train on.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = (bunch.images[:, None] / 16.0).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    held_out = (
        validation or HELD_OUT_SIZES["validation"],
        fit or HELD_OUT_SIZES["fit"],
        calibration or HELD_OUT_SIZES["calibration"],
    )
    train = len(labels) - TEST_SIZE - sum(held_out)
    if train < 10:
        raise RecipeError(
            f"validation, fit and calibration {held_out} leave {max(train, 0)} of the {len(labels) - TEST_SIZE} digits "
            "to train on; take smaller parts"
        )
    return split(ImageSet(images, labels), (train, *held_out, TEST_SIZE), tuple("0123456789"), "digits", seed=seed)
