import numpy as np
import pytest
from PIL import Image

from s2ap_defend.resizing import resize

RAMP = np.tile(np.arange(8, dtype=np.float32) / 8, (2, 1, 4, 1))  # [2, 1, 4, 8], darker to the left


def test_a_crop_is_the_central_part_of_the_wanted_shape() -> None:
    np.testing.assert_array_equal(resize(RAMP, (4, 4)), RAMP[..., 2:6])
    np.testing.assert_array_equal(resize(RAMP.swapaxes(2, 3), (4, 4)), RAMP[..., 2:6].swapaxes(2, 3))
    np.testing.assert_array_equal(resize(RAMP, (2, 8)), RAMP[..., 1:3, :])


def test_a_smaller_image_averages_pixels() -> None:
    image = np.zeros((1, 4, 8), dtype=np.float32)
    image[:, :, 2:4] = 1.0  # the left half of the central square
    # antialiased bilinear at factor 2: weights 1/8, 3/8, 3/8, 1/8 of four pixels, cut and normalised at the border
    np.testing.assert_allclose(resize(image, (2, 2)), [[[6 / 7, 1 / 7]] * 2], atol=1e-6)


def test_the_whole_image_is_stretched_whatever_its_shape() -> None:
    stretched = resize(RAMP, (4, 4), "stretch")
    assert stretched.shape == (2, 1, 4, 4)
    np.testing.assert_allclose(stretched.mean(), RAMP.mean(), atol=0.01)
    assert (np.diff(stretched[0, 0, 0]) > 0.2).all(), "from one end to the other"


@pytest.mark.parametrize(
    ("size", "inside"), [((8, 8), np.s_[2:6, :]), ((4, 12), np.s_[:, 2:10]), ((2, 9), np.s_[:, 2:6])]
)
def test_a_padded_image_lies_whole_in_the_middle_of_black(size: tuple[int, int], inside: tuple[slice, slice]) -> None:
    white = np.full((3, 4, 8), 255, dtype=np.uint8)
    padded = resize(white, size, "pad")
    assert padded.shape == (3, *size)
    expected = np.zeros(size, dtype=np.float32)
    expected[inside] = 1.0
    np.testing.assert_allclose(padded, np.broadcast_to(expected, padded.shape), atol=1e-6)


@pytest.mark.parametrize("how", ["crop", "stretch", "pad"])
def test_images_of_the_size_keep_their_bits_and_values_stay_in_range(how: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 3, 9, 7), dtype=np.uint8)
    np.testing.assert_array_equal(resize(image, (9, 7), how), image / np.float32(255))  # type: ignore[arg-type]
    for size in ((4, 4), (19, 3), (1, 1)):
        found = resize(image, size, how)  # type: ignore[arg-type]
        assert found.dtype == np.float32
        assert found.min() >= 0
        assert found.max() <= 1
        np.testing.assert_array_equal(found[2], resize(image[2], size, how))  # type: ignore[arg-type]


def test_resizing_is_what_pillow_does_to_a_grey_level() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(image).resize((24, 32), Image.Resampling.BILINEAR), dtype=np.float32)
    assert np.abs(resize(image, (32, 24)) * 255 - theirs).max() <= 1.01  # it rounds after each of its two passes
