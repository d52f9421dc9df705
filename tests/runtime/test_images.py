import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2ap_defend.errors import InputError
from s2ap_defend.images import check_images, load_images, read
from s2ap_defend.images.arrays import are_pixels

GREY = (1, 8, 8)


def png(mode: str = "L", size: tuple[int, int] = (8, 8), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, **options).save(buffer, "PNG")  # type: ignore[arg-type]
    return buffer.getvalue()


def test_a_grey_png_decodes_to_its_pixels_over_255() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    decoded = read(buffer.getvalue(), GREY)
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded, (pixels / np.float32(255.0))[None])


def test_an_rgb_image_keeps_its_channel_order() -> None:
    decoded = read(png("RGB", color=(255, 0, 51)), (3, 8, 8))
    assert decoded[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no PNG, JPEG, WebP or BMP image"),
        (b"GIF89a....", "is GIF, which is not read; convert it to PNG"),
        (png()[:40], "cannot be read as PNG"),
        (png(size=(9, 8)), "9x8 pixels, the model takes 8x8"),
        (png("RGBA"), "transparency"),
        (png("1", size=(20000, 10000)), "20000x10000 pixels, the limit is 67108864"),
    ],
)
def test_a_bad_image_is_refused_with_one_sentence(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(data, GREY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([[0.0]], r"are list, expected a numpy array float32 \[N, 1, 8, 8\] in \[0, 1\]$"),
        ([np.zeros(GREY, np.float32)] * 2, r"list.*join arrays of one image each with numpy\.stack$"),
        ("digit.png", r"str.*s2ap_defend\.images\.read makes one image of a file"),
        (Image.new("L", (8, 8)), r"Image, .*s2ap_defend\.images\.read makes one image of .*a Pillow image$"),
        (np.zeros((1, 1, 8, 8)), r"float64, .*; convert with \.astype\('float32'\)$"),
        (np.zeros((1, 1, 8, 8), np.uint8), r"uint8, .*; convert with \(images / 255\)\.astype\('float32'\)"),
        (np.zeros((1, 8, 8), np.float32), r"shape \[1, 8, 8\].*a single image goes in as images\[None\]$"),
        (np.zeros((8, 8, 1), np.float32), r"channels first: images\.transpose\(2, 0, 1\)\[None\]$"),
        (np.zeros((2, 8, 8, 1), np.float32), r"channels first: images\.transpose\(0, 3, 1, 2\)$"),
        (np.zeros((8, 8), np.float32), r"give grey images their channel: images\[None, None\]$"),
        (np.zeros((5, 8, 8), np.float32), r"give grey images their channel: images\[:, None\]$"),
        (np.zeros((5, 1, 9, 8), np.float32), r"s2ap_defend\.images\.resize brings them to that size$"),
        (np.zeros((2, 3, 8, 8), np.float32), r"shape \[2, 3, 8, 8\], expected float32 \[N, 1, 8, 8\] in \[0, 1\]$"),
        (np.full((1, 1, 8, 8), -1, np.float32), r"\[-1, -1\], .*; do not normalise, the file does$"),
        (np.zeros((0, 1, 8, 8), np.float32), "empty"),
        (np.full((1, 1, 8, 8), np.nan, np.float32), "NaN"),
        (np.full((1, 1, 8, 8), np.inf, np.float32), "infinite"),
        (np.full((1, 1, 8, 8), 255, np.float32), "divide 8-bit pixels by 255"),
        (np.full((1, 1, 8, 8), -0.1, np.float32), r"\[-0.1, -0.1\]"),
    ],
)
def test_arrays_that_the_model_does_not_take_are_refused(images: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_images(images, GREY)


def test_whatever_holds_an_image_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "small image.jpg"
    turned = Image.Exif()
    turned[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, exif=turned, quality=90)
    expected = read(path)
    assert expected.shape == (3, 9, 6), "turned upright"
    content = path.read_bytes()
    for same in (str(path), content, bytearray(content), memoryview(content), io.BytesIO(content), Image.open(path)):
        assert np.array_equal(read(same), expected), type(same)
    with path.open("rb") as file:
        assert np.array_equal(read(file), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_an_image_of_pillow_is_read_as_its_png_file_is(mode: str) -> None:
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image = Image.fromarray(levels.astype(np.uint16) * 900) if mode == "I;16" else Image.fromarray(levels).convert(mode)
    assert image.mode == mode
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert np.array_equal(read(image), read(buffer.getvalue()))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("CMYK", (8, 8)), r"Pillow's mode CMYK, .*convert it with \.convert\('RGB'\)$"),
        (np.zeros(GREY, np.float32), "the image is a ndarray, expected a path, the bytes of a file"),
        (io.StringIO("text"), r"the image is a file of text, .*\('rb'\)"),
        (None, "the image is a NoneType"),
    ],
)
def test_what_holds_no_image_is_refused_with_what_would(image: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(image)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["trained", "fit", ""])
def test_an_unknown_way_to_resize_is_refused(how: str) -> None:
    with pytest.raises(InputError, match=rf"resize is '{how}', expected one of crop, stretch, pad"):
        read(png(size=(9, 8)), GREY, resize=how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "is_pixel"),
    [
        *((0.0, True), (1e-45, True), (1.0, True), (1.0000001, False), (-1e-45, False)),
        *((np.nan, False), (-np.nan, False), (np.inf, False), (-np.inf, False)),
    ],
)
def test_one_look_at_each_number_tells_pixels_from_others(value: float, is_pixel: bool) -> None:
    image = np.full((2, 1, 3, 3), 0.5, dtype=np.float32)
    image[1, 0, 2, 1] = value
    assert are_pixels(image) == is_pixel
    assert are_pixels(image[:, :, ::-1]) == is_pixel


def test_a_negative_zero_is_an_image_as_well() -> None:
    images = np.full((1, 1, 2, 2), -0.0, dtype=np.float32)
    assert check_images(images, (1, 2, 2)) is images


def test_arrays_in_files_may_hold_one_image_or_a_batch(tmp_path: Path) -> None:
    batch = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    np.save(tmp_path / "one.npy", batch[0])
    np.savez(tmp_path / "many.npz", images=batch, labels=np.arange(3))
    assert np.array_equal(load_images(tmp_path / "one.npy", GREY), batch[:1])
    assert np.array_equal(load_images(tmp_path / "many.npz", GREY), batch)


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    np.save(tmp_path / "bytes.npy", np.zeros((8, 8), np.uint8))
    (tmp_path / "text.txt").write_text("x")
    for name, message in (
        ("objects.npy", "pickled"),
        ("two.npz", "one called 'images'"),
        ("bytes.npy", "uint8"),
        ("text.txt", "ending .txt"),
        ("missing.png", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            load_images(tmp_path / name, GREY)
