"""Every kind of image file is read as a viewer shows it, or refused with the reason."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from s2ap_defend.errors import InputError
from s2ap_defend.images import read
from tests.runtime.image_files import CASES, COLOURS, Case, encoded, exif


def shown(content: bytes, **options: bool) -> np.ndarray:
    """Pixels in levels [H, W, C]."""
    return np.rint(read(content, **options) * 255.0).astype(np.uint8).transpose(1, 2, 0)


def assert_shows(pixels: np.ndarray, expected: np.ndarray, tolerance: int) -> None:
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_file_is_read_as_it_is_shown_or_refused_with_the_reason(case: Case) -> None:
    if isinstance(case.shown, str):
        with pytest.raises(InputError) as caught:
            read(case.content, name="x.png")
        assert str(caught.value).startswith("x.png ")
        assert case.shown in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        assert_shows(shown(case.content), case.shown, case.tolerance)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_on_white_changes_what_is_transparent_and_nothing_else(case: Case) -> None:
    if case.on_white is not None:
        assert_shows(shown(case.content, on_white=True), case.on_white, case.tolerance)
    elif isinstance(case.shown, str):
        with pytest.raises(InputError):
            read(case.content, on_white=True)
    else:
        assert_shows(shown(case.content, on_white=True), case.shown, case.tolerance)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_what_pillow_makes_of_it(orientation: int, order: str) -> None:
    tall = np.concatenate([COLOURS, COLOURS[:4]])
    content = encoded(tall, exif=exif(orientation, order))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert np.array_equal(shown(content), expected)
    height, width = expected.shape[:2]
    assert read(content, (3, height, width)).shape == (3, height, width)
    with pytest.raises(InputError, match=f"is {width}x{height} pixels, the model takes 5x5"):
        read(content, (3, 5, 5))


@pytest.mark.parametrize("damaged", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", exif(6)[:-8], b"junk"])
def test_exif_that_cannot_be_read_turns_nothing(damaged: bytes) -> None:
    assert np.array_equal(shown(encoded(COLOURS, exif=damaged)), COLOURS)


def test_grey_is_repeated_for_a_colour_model_and_colour_is_weighed_for_a_grey_one() -> None:
    grey = read(CASES["grey PNG"].content)
    assert np.array_equal(read(CASES["grey PNG"].content, (3, 8, 8)), np.repeat(grey, 3, axis=0))
    weighed = (COLOURS @ np.array([0.299, 0.587, 0.114]))[None]
    assert np.abs(read(CASES["PNG"].content, (1, 8, 8)) * 255 - weighed).max() <= 0.51
    with pytest.raises(InputError, match="the model takes 4 channels, which no image file has"):
        read(CASES["PNG"].content, (4, 8, 8))


def test_the_file_of_two_pictures_is_one_to_pillow_too() -> None:
    with Image.open(io.BytesIO(CASES["two pictures, JPEG"].content)) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)


def test_a_path_is_read_and_named(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(CASES["PNG"].content)
    assert np.array_equal(read(tmp_path / "a.png"), read(CASES["PNG"].content))
    assert np.array_equal(read(str(tmp_path / "a.png")), read(CASES["PNG"].content))
    with pytest.raises(InputError, match=r"none\.png cannot be read: No such file"):
        read(tmp_path / "none.png")


def test_a_damaged_file_of_any_kind_is_read_or_refused_in_one_line() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        for case in CASES.values():
            content = bytearray(case.content)
            for place in rng.integers(len(content), size=3):
                content[place] = rng.integers(256)
            try:
                image = read(bytes(content[: rng.integers(1, 2 * len(content))]), on_white=True)
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                assert image.dtype == np.float32
                assert 0.0 <= image.min() <= image.max() <= 1.0
