"""The picture of attacked images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2ap_defend import DefendedClassifier
from s2ap_defend.errors import RecipeError
from s2ap_train.data import ImageSet


def smooth_images(count: int) -> np.ndarray:
    rough = np.random.default_rng(0).random((count, 1, 7, 7), np.float32)
    return rough.repeat(4, axis=2).repeat(4, axis=3)


def test_the_picture_shows_images_that_fool_the_classifier_and_what_the_file_says(
    benchmarks: None, tmp_path: Path
) -> None:
    from caught import attacked, draw

    served = DefendedClassifier.load("fashion")
    images = smooth_images(60)
    verdicts = served(images)
    labels = verdicts.label  # right by definition
    found = attacked(Path("fashion"), ImageSet(images, labels), 0.1)
    clean, after, rows = found["attack on the classifier"][0], found["attack on the classifier"][1], found["clean"][2]
    assert np.abs(clean - images[rows]).max() <= 0.1 + 1e-6
    assert (after.base_label != labels[rows]).all()
    assert (found["clean"][1].label == labels[rows]).all()
    assert len(np.unique(labels[rows])) == len(rows)
    draw(found, labels, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 100


def test_without_an_image_to_show_that_is_said(benchmarks: None) -> None:
    from caught import attacked

    images = smooth_images(4)
    wrong = (DefendedClassifier.load("fashion")(images).label + 1) % 10
    with pytest.raises(RecipeError, match="of 4 test images none is answered rightly and fools the classifier"):
        attacked(Path("fashion"), ImageSet(images, wrong), 0.1)
