"""Decoded pixels as 8-bit samples: colours, and how opaque each pixel is."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from PIL.ImageFile import ImageFile

from s2ap_defend.images.kinds import png_chunks

_WORDS = {2: ("RGB", "RGB;16B", "RGB;16L"), 6: ("RGBA", "RGBA;16B", "RGBA;16L")}
"""By PNG's colour type: Pillow's mode, and the raw modes that take the upper and the lower byte of 16-bit samples."""


@dataclass(frozen=True)
class Samples:
    """Pixels of one image.

    Attributes:
        colours: uint8 [H, W, C]; C is 1 (grey), 3 (RGB) or 4 (CMYK).
        alpha: uint8 [H, W], 255 is opaque; None where all is.
    """

    colours: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None


def samples(image: ImageFile, content: bytes, kind: str) -> Samples:
    """Decode an opened file; 16-bit samples v of PNG files are rounded to the nearest level, v * 255 / 65535.

    What it raises depends on where the damage is.
    """
    if kind == "PNG":
        return _png(image, content)
    pixels = _array(image.convert("RGB") if image.mode == "P" else image)
    return Samples(pixels) if image.mode == "CMYK" else _split(pixels)


def is_grey_png(content: bytes) -> bool:
    """Whether a PNG file holds grey, with alpha or without."""
    return png_chunks(content)[b"IHDR"][9] in {0, 4}


def grey(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB [H, W, 3] to ITU-R 601's grey [H, W, 1]."""
    return _array(Image.fromarray(colours).convert("L"))


def on_white(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite [H, W, C] on white, rounded to the nearest level."""
    opaque = alpha[..., None].astype(np.uint32)
    return ((colours * opaque + 255 * (255 - opaque) + 127) // 255).astype(np.uint8)


def _png(image: ImageFile, content: bytes) -> Samples:
    chunks = png_chunks(content)
    depth, colour_type = chunks[b"IHDR"][8], chunks[b"IHDR"][9]
    key = chunks.get(b"tRNS")
    if image.mode == "P":
        return _split(_array(image.convert("RGB" if key is None else "RGBA")))
    pixels: NDArray[Any] = _deep(image, content, colour_type) if depth == 16 else _array(image)
    alpha = None
    if key is not None and colour_type in {0, 2}:
        colour = np.frombuffer(key[: 2 if colour_type == 0 else 6], ">u2") & (2**depth - 1)
        if depth < 8:
            colour = colour * 255 // (2**depth - 1)  # as Pillow spreads the levels
        alpha = np.where((pixels == colour).all(axis=2), 0, 255).astype(np.uint8)
    if depth == 16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return Samples(pixels, alpha) if alpha is not None else _split(pixels)


def _deep(image: ImageFile, content: bytes, colour_type: int) -> NDArray[np.uint16]:
    """16-bit samples [H, W, C], of which Pillow itself gives all 16 bits for grey alone."""
    if colour_type == 0:
        return np.asarray(image).astype(np.uint16)[..., None]
    if colour_type == 4:  # four bytes a pixel, taken as they are
        upper_and_lower = _array(_decoded_as(content, "RGBA", "RGBA"))
        upper, lower = upper_and_lower[..., 0::2], upper_and_lower[..., 1::2]
    else:
        mode, first, second = _WORDS[colour_type]
        upper, lower = (_array(_decoded_as(content, mode, raw)) for raw in (first, second))
    return upper.astype(np.uint16) * np.uint16(256) + lower


def _decoded_as(content: bytes, mode: str, raw: str) -> Image.Image:
    """A PNG file whose samples are taken by another raw mode of Pillow."""
    image = PngImagePlugin.PngImageFile(io.BytesIO(content))
    image._mode = mode
    image.tile = [tile._replace(args=raw) for tile in image.tile]
    image.load()
    return image


def _array(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W, C]."""
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _split(pixels: NDArray[np.uint8]) -> Samples:
    """Grey or RGB, with alpha as the last channel or without."""
    if pixels.shape[2] in {2, 4}:
        return Samples(pixels[..., :-1], pixels[..., -1])
    return Samples(pixels)
