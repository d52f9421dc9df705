"""Labels in the order of a network's outputs."""

import numpy as np
import pytest

from s2ap_defend.errors import RecipeError
from s2ap_train.data import DataSettings, data_facts, load_data


@pytest.fixture
def npz(tmp_path):
    """120 images of three classes; the first pixel says which."""
    labels = np.arange(120) % 3
    images = np.zeros((120, 1, 6, 5), dtype=np.float32)
    images[:, 0, 0, 0] = labels / 4
    images[:, 0, 5, 4] = np.arange(120) / 200
    path = tmp_path / "own.npz"

    def write(**more):
        np.savez(path, images=images, labels=labels, **more)
        return path

    return write


def settings(path, **more):
    return DataSettings(source="npz", root=path, validation=9, fit=9, calibration=9, **more)


def test_labels_follow_the_order_that_is_given(npz):
    path = npz(classes=np.array(["ape", "bee", "cat"]))
    splits = load_data(settings(path, classes=("cat", "ape", "bee")), 0)
    assert splits.classes == ("cat", "ape", "bee")
    for part in splits.by_name.values():
        own = np.rint(part.images[:, 0, 0, 0] * 4).astype(int)  # ape 0, bee 1, cat 2
        assert (part.labels == (own + 1) % 3).all()


def test_classes_without_names_get_those_that_are_given(npz):
    splits = load_data(settings(npz(), classes=("x", "y", "z")), 0)
    assert splits.classes == ("x", "y", "z")
    assert (splits.test.labels == np.rint(splits.test.images[:, 0, 0, 0] * 4)).all()


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("ape", "bee", "dog"), "lacks cat; own has no dog"),
        (("ape", "bee"), "names 2 classes, own has 3: it lacks cat"),
        (("ape", "ape", "cat"), "names 'ape' twice"),
    ],
)
def test_names_that_are_not_the_datas_are_refused(npz, classes, said):
    path = npz(classes=np.array(["ape", "bee", "cat"]))
    with pytest.raises(RecipeError, match=said):
        load_data(settings(path, classes=classes), 0)


def test_facts_are_counted_before_images_are_read(npz):
    facts = data_facts(settings(npz()))
    assert (facts.image_shape, facts.classes) == ((1, 6, 5), ("0", "1", "2"))
    assert (facts.training, facts.test) == (96, 24)
    splits = load_data(settings(npz()), 0)
    assert facts.training == sum(len(part) for name, part in splits.by_name.items() if name != "test")
