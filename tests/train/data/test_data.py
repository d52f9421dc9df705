import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from s2ap_defend.errors import RecipeError
from s2ap_defend.images import resize
from s2ap_train.data import DataSettings, load_data, load_digits
from s2ap_train.data.source import Resizing
from s2ap_train.data.splitting import cut, stratified

# computed with the first released split; a changed split would mix test images of old checkpoints into training
DIGITS = {
    0: "bb41f658f63ccdf63fa3b399f0ba2c1e7c4e4aa9c2f283e81809c1bb58e8864d",
    1: "e095e92475aeb13e6d729c2508f2d0fb95235321ab9a025588198a08e8a117ce",
    7: "109891366a9bb3970871af96cb5209f28fabbe9dfac6917d7b90e17b578cf9f7",
}
CLASSES = ("a", "b", "c")


def numbered(labels: np.ndarray, start: int = 0) -> np.ndarray:
    """Float images [N, 1, 4, 4] that say who they are: pixel values hold the number of the image."""
    images = np.zeros((len(labels), 1, 4, 4), dtype=np.float32)
    images[:, 0, 0, 0] = (np.arange(len(labels)) + start) / 65536
    return images


def identity(images: np.ndarray) -> list[int]:
    return np.round(images[:, 0, 0, 0] * 65536).astype(int).tolist()


def save(path: Path, train: np.ndarray, test: np.ndarray) -> Path:
    images = {"x_train": numbered(train), "x_test": numbered(test, len(train))}
    np.savez(path, **images, y_train=train, y_test=test)
    return path


@pytest.mark.parametrize("seed", DIGITS)
def test_the_digits_are_split_as_they_always_were(seed: int) -> None:
    assert load_digits(seed).sha256() == DIGITS[seed]
    assert load_data("digits", seed).sha256() == DIGITS[seed]


def test_other_held_out_sizes_leave_the_test_digits_alone() -> None:
    usual, other = load_digits(3), load_data(DataSettings(source="digits", validation=20, calibration=300), 3)
    assert {name: len(part) for name, part in other.by_name.items()} == {
        "train": 1397 - 20 - 150 - 300,
        "validation": 20,
        "fit": 150,
        "calibration": 300,
        "test": 400,
    }
    assert (other.test.images == usual.test.images).all()


def test_limited_and_resized_digits_are_a_part_of_the_usual_split() -> None:
    usual, small = load_digits(0), load_data(DataSettings(source="digits", train_limit=200, test_limit=50), 0)
    for name in ("train", "test"):
        known = {image.tobytes(): label for image, label in zip(*vars(usual.by_name[name]).values(), strict=True)}
        part = small.by_name[name]
        assert [known[image.tobytes()] for image in part.images] == part.labels.tolist()
    assert (len(small.train), len(small.test), len(small.fit)) == (200, 50, 150)
    large = load_data(DataSettings(source="digits", image_size=12), 0)
    assert large.image_shape == (1, 12, 12)
    assert (large.test.images == resize(usual.test.images, (12, 12))).all()
    assert (usual.resize, large.resize) == (None, "crop")
    wide = load_data(DataSettings(source="digits", image_size=(8, 12), resize="pad"), 0)
    assert (wide.image_shape, wide.resize) == ((1, 8, 12), "pad")
    assert (wide.test.images[..., 2:10] == usual.test.images).all()


def test_digits_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(RecipeError, match="leave 0 of the 1397 digits"):
        load_data(DataSettings(source="digits", validation=2000), 0)
    with pytest.raises(RecipeError, match="has no image of class"):
        load_data(DataSettings(source="digits", train_limit=5), 0)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 2), min_size=30, max_size=80),
    own_test=st.booleans(),
    sizes=st.tuples(*[st.integers(1, 6)] * 3),
    limits=st.tuples(*[st.none() | st.integers(3, 100)] * 2),
    seed=st.integers(0, 5),
)
def test_no_row_is_in_two_parts(
    labels: list[int],
    own_test: bool,
    sizes: tuple[int, int, int],
    limits: tuple[int | None, int | None],
    seed: int,
) -> None:
    training = np.array([0, 1, 2, *labels] * 2)
    held_out = dict(zip(("validation", "fit", "calibration"), sizes, strict=True))
    test = training[::3] if own_test else None
    options = {"classes": CLASSES, "held_out": held_out, "train_limit": limits[0], "test_limit": limits[1]}
    try:
        rows = cut(training, test, **options, seed=seed)
    except RecipeError:
        reject()
    parts = [rows.train, rows.validation, rows.fit, rows.calibration, *([] if own_test else [rows.test])]
    together = np.concatenate(parts)
    assert len(together) == len({*together.tolist()})
    assert (together >= 0).all()
    assert (together < len(training)).all()
    assert [len(part) for part in parts[1:4]] == list(sizes)
    assert len(rows.train) <= (limits[0] or len(training))
    if own_test:
        assert len({*rows.test.tolist()}) == len(rows.test) == min(limits[1] or len(test), len(test))
        assert limits[0] or len(together) == len(training)
    again = cut(training, test, **options, seed=seed)
    assert all((getattr(rows, name) == getattr(again, name)).all() for name in vars(rows))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 70), st.integers(0, 3))
def test_every_class_keeps_its_share_within_one_image(labels: list[int], size: int, seed: int) -> None:
    numbers = np.array(labels)
    rows = np.arange(len(labels))
    chosen, rest = stratified(numbers, rows, size, np.random.default_rng(seed))
    assert sorted([*chosen, *rest]) == rows.tolist()
    assert len(chosen) == min(size, len(labels))
    share = len(chosen) * np.bincount(numbers, minlength=5) / len(labels)
    assert (np.abs(np.bincount(numbers[chosen], minlength=5) - share) < 1).all()


def test_the_first_rows_of_a_part_are_no_class_by_class_list() -> None:
    labels = np.repeat([0, 1, 2], 300)
    rows = cut(labels, labels, classes=CLASSES, held_out=dict.fromkeys(["validation", "fit", "calibration"], 30),
               train_limit=None, test_limit=None, seed=0)  # fmt: skip
    for part in vars(rows).values():
        assert (np.bincount(labels[part[:30]], minlength=3) >= 2).all()


def test_a_limit_changes_only_the_part_that_it_limits(tmp_path: Path) -> None:
    labels = np.arange(120) % 3
    root = save(tmp_path / "data.npz", labels, labels[:60])
    held_out = {"validation": 9, "fit": 9, "calibration": 12}
    whole = load_data(DataSettings(source="npz", root=root, **held_out), 0)
    limited = load_data(DataSettings(source="npz", root=root, **held_out, train_limit=30, test_limit=15), 0)
    for name in held_out:
        assert identity(whole.by_name[name].images) == identity(limited.by_name[name].images)
    assert {*identity(limited.train.images)} < {*identity(whole.train.images)}
    assert np.bincount(limited.train.labels).tolist() == [10, 10, 10]
    assert np.bincount(limited.test.labels).tolist() == [5, 5, 5]


@pytest.mark.parametrize("seed", range(5))
def test_no_test_image_enters_another_part(tmp_path: Path, seed: int) -> None:
    train, test = np.arange(100) % 3, np.arange(40) % 3
    splits = load_data(DataSettings(source="npz", root=save(tmp_path / "data.npz", train, test)), seed)
    parts = {name: identity(part.images) for name, part in splits.by_name.items()}
    assert sorted(parts.pop("test")) == list(range(100, 140))
    assert sorted(n for numbers in parts.values() for n in numbers) == list(range(100))
    for part in splits.by_name.values():
        assert part.labels.tolist() == [(n if n < 100 else n - 100) % 3 for n in identity(part.images)]


def test_test_images_that_are_trained_on_are_counted_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.arange(60) % 3
    images = numbered(labels)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images[:7], y_test=labels[:7])
    with caplog.at_level(logging.WARNING):
        load_data(DataSettings(source="npz", root=tmp_path / "d.npz"), 0)
    assert caplog.messages == [
        "7 of 7 test images of d are also among the images that are trained, chosen or calibrated on"
    ]


def test_progress_ends_at_the_number_of_images_that_are_used(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    root = save(tmp_path / "data.npz", np.arange(90) % 3, np.arange(30) % 3)
    splits = load_data(DataSettings(source="npz", root=root, train_limit=30), 0, lambda *now: seen.append(now))
    total = sum(map(len, splits.by_name.values()))
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"validation": 80},
            "validation 80, fit 4, calibration 4 together are more than 87, .* 90 images without one of",
        ),
        ({"validation": 90}, "of its 3 classes; take smaller parts"),
        ({"train_limit": 2}, "data.train_limit 2 leaves some of 3 classes no image"),
    ],
)
def test_sizes_that_cannot_be_cut_are_refused(tmp_path: Path, given: dict[str, int], message: str) -> None:
    root = save(tmp_path / "data.npz", np.arange(90) % 3, np.arange(30) % 3)
    with pytest.raises(RecipeError, match=message):
        load_data(DataSettings(source="npz", root=root, **given), 0)


@pytest.mark.parametrize("train_limit", [None, 3])
@pytest.mark.parametrize("own_test", [True, False])
def test_the_only_image_of_a_class_is_trained_on(train_limit: int | None, own_test: bool) -> None:
    labels = np.array([0] * 10 + [1] * 10 + [2])
    held_out = {"validation": 6, "fit": 6, "calibration": 6 if own_test else 1}
    options = {"classes": CLASSES, "held_out": held_out, "train_limit": train_limit, "test_limit": 5}
    for seed in range(20):
        rows = cut(labels, labels if own_test else None, **options, seed=seed)
        assert sorted(labels[rows.train].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_some_library_would_refuse_is_refused(seed: int) -> None:
    with pytest.raises(RecipeError, match=f"seed is {seed}; give a number from 0 to 4294967295"):
        load_data("digits", seed)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("digit", "data 'digit' is not known; did you mean 'digits'"),
        ("imagenet-22k", "data 'imagenet-22k' is not known; choose from digits, cifar10"),
        ({"source": "digits", "root": "x"}, "root is given for the digits"),
        ({"source": "npz", "root": ("a", "b")}, "only 'folder' reads several"),
        ({"source": "npz", "root": "a", "channels": 1}, "data.channels converts image files"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        DataSettings.model_validate(given)


def test_a_recipe_may_leave_the_place_of_its_data_to_the_command() -> None:
    for unplaced in (DataSettings(source="cifar10"), DataSettings(source="folder", root=())):
        with pytest.raises(RecipeError, match=rf"say where the data set '{unplaced.source}' lies, with --data PATH"):
            load_data(unplaced, 0)


@pytest.mark.parametrize(
    "given",
    [
        {"source": "cifar11"},
        {"source": "digits", "sead": 1},
        {"source": "digits", "fit": 0},
        {"source": "digits", "channels": 2},
    ],
)
def test_settings_with_a_wrong_value_are_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        DataSettings.model_validate(given)


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DataSettings(source="npz", root=Path("~/d.npz")).roots == (tmp_path / "d.npz",)


@pytest.mark.parametrize("size", [1, (8,), (8, 1), (8, 8, 3), 8.5])
def test_a_size_is_one_side_or_height_and_width(size: object) -> None:
    with pytest.raises(ValidationError, match="image_size"):
        DataSettings.model_validate({"source": "digits", "image_size": size})


def test_a_policy_of_resizing_needs_a_size() -> None:
    with pytest.raises(RecipeError, match="is 'pad', but no size is given; set data"):
        DataSettings(source="digits", resize="pad")
    assert DataSettings(source="digits", image_size=9).resizing == Resizing((9, 9), "crop")
    assert DataSettings.model_validate({"source": "digits", "image_size": [20, 12], "resize": "stretch"}).resizing == (
        Resizing((20, 12), "stretch")
    )
