import os
from pathlib import Path

import numpy as np
import pytest

from s2ap_defend.errors import RecipeError
from s2ap_train.data import DataSettings, Splits, load_data
from s2ap_train.data.arrays import is_channels_last

LABELS = np.arange(40) % 2


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def load(path: Path, **settings: int) -> Splits:
    return load_data(DataSettings(source="npz", root=path, **settings), 0)


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "d.npz"
    np.savez_compressed(path, **arrays)
    return path


def test_every_layout_gives_the_same_images(tmp_path: Path) -> None:
    channels_last = pixels(40, 5, 6, 3)
    channels_first = channels_last.transpose(0, 3, 1, 2)
    results = [
        load(saved(tmp_path, images=images, labels=LABELS))
        for images in (channels_last, channels_first, channels_first.astype(np.float32) / np.float32(255))
    ]
    assert results[0].image_shape == (3, 5, 6)
    assert len({splits.sha256() for splits in results}) == 1
    known = {(image / np.float32(255)).astype(np.float32).tobytes() for image in channels_first}
    assert {image.tobytes() for part in results[0].by_name.values() for image in part.images} == known


def test_grey_images_need_no_channel_dimension(tmp_path: Path) -> None:
    images = pixels(40, 5, 6)
    assert load(saved(tmp_path, images=images, labels=LABELS)).image_shape == (1, 5, 6)


def test_the_own_test_part_is_the_test_part(tmp_path: Path) -> None:
    train, test = pixels(40, 5, 5, 1), pixels(10, 5, 5, 1)[::-1]
    splits = load(saved(tmp_path, x_train=train, y_train=LABELS, x_test=test, y_test=LABELS[:10, None]))
    assert len(splits.test) == 10
    assert {image.tobytes() for image in np.round(splits.test.images * 255).astype(np.uint8)} == {
        image.tobytes() for image in test
    }


def test_without_a_test_part_a_fifth_or_the_limit_is_cut(tmp_path: Path) -> None:
    path = saved(tmp_path, images=pixels(40, 5, 5, 1), labels=LABELS)
    assert len(load(path).test) == 8
    assert len(load(path, test_limit=5).test) == 5


def test_classes_have_the_names_that_the_file_gives(tmp_path: Path) -> None:
    arrays = {"images": pixels(40, 5, 5, 1), "labels": LABELS}
    assert load(saved(tmp_path, **arrays)).classes == ("0", "1")
    assert load(saved(tmp_path, **arrays, classes=np.array(["cat", "dog"]))).classes == ("cat", "dog")


def test_images_are_resized_where_the_parts_differ(tmp_path: Path) -> None:
    path = saved(tmp_path, x_train=pixels(40, 8, 8, 1), y_train=LABELS, x_test=pixels(10, 6, 9, 1), y_test=LABELS[:10])
    with pytest.raises(RecipeError, match=r"x_train holds images of 8x8, x_test of 9x6; set data\.image_size"):
        load(path)
    assert load(path, image_size=4).test.images.shape == (10, 1, 4, 4)
    assert load(path, image_size=(4, 6), resize="stretch").test.images.shape == (10, 1, 4, 6)


@pytest.mark.parametrize("shape", [(40, 4, 9, 6), (40, 9, 6, 4)])
def test_arrays_may_have_four_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = pixels(*shape)
    splits = load(saved(tmp_path, images=images, labels=LABELS))
    assert splits.image_shape == (4, 9, 6)
    first = images if shape[1] == 4 else images.transpose(0, 3, 1, 2)
    known = {image.tobytes() for image in first.astype(np.float32) / np.float32(255)}
    assert {image.tobytes() for image in splits.train.images} <= known


@pytest.mark.parametrize(
    ("shape", "answer"),
    [
        ((9, 5, 5, 3), True),
        ((9, 3, 5, 5), False),
        ((9, 5, 3, 1), True),
        ((9, 1, 3, 5), False),
        ((9, 4, 5, 3), True),
        ((9, 3, 5, 4), False),
        ((9, 4, 5, 5), False),
        ((9, 5, 5, 4), True),
    ],
)
def test_channels_are_found_by_their_number(shape: tuple[int, ...], answer: bool) -> None:
    assert is_channels_last(shape, "images") is answer


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((40, 3, 8, 3), "either dimension 1 or 3 may be the channels"),
        ((40, 1, 8, 1), "either dimension 1 or 3"),
        ((40, 4, 8, 4), "either dimension 1 or 3"),
        ((40, 2, 8, 8), "neither dimension 1 nor 3 is 1, 3 or 4 channels"),
        ((40, 8), r"has shape \[40, 8\], expected \[N, H, W, C\]"),
        ((40, 0, 8, 1), "holds no pixels"),
        ((39, 8, 8), "images holds 39 images, labels 40 labels"),
    ],
)
def test_shapes_that_say_too_little_are_refused(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(saved(tmp_path, images=pixels(*shape), labels=LABELS))


GREY = pixels(40, 5, 5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GREY.astype(np.float64), "labels": LABELS}, "is float64, expected uint8 in 0..255 or float32"),
        ({"images": GREY.astype(np.float32), "labels": LABELS}, r"lies in \[0, 255\], .*divide 8-bit pixels by 255"),
        (
            {"images": GREY / np.float32(-255), "labels": LABELS},
            r"lies in \[-1, -?0\], expected float32 in \[0, 1\]; undo their normalisation",
        ),
        ({"images": np.full((40, 5, 5), np.nan, np.float32), "labels": LABELS}, "NaN or infinite"),
        ({"images": np.full((40, 5, 5), np.inf, np.float32), "labels": LABELS}, "NaN or infinite"),
        ({"images": GREY, "labels": LABELS * 2}, "no image of class '1'"),
        ({"images": GREY, "labels": LABELS + 1}, "starts at 1; number the classes from 0: subtract 1"),
        ({"images": GREY, "labels": LABELS - 1}, "has labels from -1 to 0"),
        ({"images": GREY, "labels": LABELS * 10**12}, "goes up to 1000000000000 with 40 labels"),
        ({"images": GREY, "labels": LABELS * 0}, "has 1 class, a classifier needs two"),
        ({"images": GREY, "labels": LABELS / 2}, r"is float64 \[40\], expected integers"),
        ({"images": GREY, "labels": np.eye(2, dtype=int)[LABELS]}, r"is int64 \[40, 2\], expected integers \[N\]"),
        ({"images": GREY, "labels": LABELS, "extra": LABELS}, "holds the array 'extra', which is not known; expected"),
        ({"images": GREY, "y_train": LABELS}, "holds the arrays images, y_train; expected images and labels, or"),
        ({"images": GREY, "labels": LABELS, "classes": np.array(["a", "a"])}, "names a class twice"),
        ({"images": GREY, "labels": LABELS, "classes": np.array([0, 1])}, r"is int64 \[2\], expected text"),
        ({"images": GREY, "labels": LABELS, "classes": np.array(["a", "b", "c"])}, "no image of class 'c'"),
        ({"images": GREY[:0], "labels": LABELS[:0]}, "holds no images"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load(saved(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("test", "labels", "message"),
    [
        (GREY[:10], np.full(10, 2), "y_test has labels from 2 to 2, expected 0 to 1, those of the training images"),
        (GREY[:0], LABELS[:0], "y_test holds no images"),
        (np.repeat(GREY[:10, ..., None], 3, axis=3), LABELS[:10], "x_train has 1 channels, x_test 3"),
    ],
)
def test_a_test_part_that_does_not_fit_is_refused(
    tmp_path: Path, test: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load(saved(tmp_path, x_train=GREY, y_train=LABELS, x_test=test, y_test=labels))


class Command:
    """Runs a command wherever it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_objects_are_never_built(tmp_path: Path) -> None:
    arrays = {"images": np.array([Command(tmp_path / "ran")]), "labels": LABELS[:1]}
    with pytest.raises(
        RecipeError, match=r"cannot be read as \.npz \(an array in it holds Python objects, .*save it"
    ) as refused:
        load(saved(tmp_path, **arrays))
    assert not (tmp_path / "ran").exists()
    assert "allow_pickle" not in str(refused.value)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.npz is no file; expected an \.npz file"):
        load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("images")
    with pytest.raises(
        RecipeError, match=r"text\.npz cannot be read as \.npz \(it is neither a zip of arrays"
    ) as refused:
        load(tmp_path / "text.npz")
    assert "allow_pickle" not in str(refused.value)
    np.save(tmp_path / "one.npy", GREY)
    with pytest.raises(RecipeError, match="one array without a name"):
        load(tmp_path / "one.npy")


def test_every_cut_off_npz_is_refused_with_one_message(tmp_path: Path) -> None:
    whole = saved(tmp_path, images=GREY, labels=LABELS).read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(RecipeError, match="cannot be read"):
            load(tmp_path / "cut.npz")


def test_a_damaged_npz_is_read_as_it_was_or_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, images=GREY, labels=LABELS).read_bytes()
    expected = load(tmp_path / "d.npz").sha256()
    for place in range(0, len(whole), 13):
        (tmp_path / "d.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert load(tmp_path / "d.npz").sha256() == expected
        except RecipeError as error:
            assert "\n" not in str(error)  # noqa: PT017
