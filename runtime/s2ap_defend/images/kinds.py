"""Kinds of image files: which are read, and what a file says of itself before its pixels are decoded."""

import io
import struct
from collections.abc import Callable

from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

MAX_PIXELS = 64 * 1024 * 1024
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp")
"""Endings of the files that are read; what counts is what is in them."""
OTHER_SUFFIXES = (
    *(".apng", ".avif", ".gif", ".heic", ".heif", ".j2k", ".jp2", ".jxl", ".pbm", ".pgm", ".ppm", ".psd", ".svg"),
    *(".tif", ".tiff"),
)
"""Endings of pictures that are not read."""
READ = "PNG, JPEG, WebP or BMP"
"""What is read, in messages."""

_OPENERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,  # of several pictures in a file (MPO) the first
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_BEGINNINGS = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WebP"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (4, b"jP  \r\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL \r\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (0, b"8BPS", "Photoshop"),
)
_ORIENTATION = 0x0112  # tag of EXIF
_SHORT = 3  # EXIF's 16-bit number
_BMP_HEADERS = (40, 52, 56, 108, 124)


def kind_of(content: bytes) -> str:
    """The kind of an image file by its first bytes; '' where it is none that is known."""
    return next((kind for at, begin, kind in _BEGINNINGS if content[at : at + len(begin)] == begin), "")


def open_file(content: bytes, kind: str) -> ImageFile:
    """Read the head of a file of one of the kinds that are read; what it raises depends on where the damage is."""
    return _OPENERS[kind](io.BytesIO(content))


def is_read(kind: str) -> bool:
    """Whether files of this kind are read."""
    return kind in _OPENERS


def orientation(exif: bytes) -> int:
    """EXIF's orientation, 1 (as it lies) to 8; 1 where EXIF does not say it or cannot be read, as in browsers."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def png_chunks(content: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG file before its pixels, by name."""
    chunks: dict[bytes, bytes] = {}
    position = 8
    while position + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        if name in {b"IDAT", b"IEND"}:
            break
        chunks[name] = content[position + 8 : position + 8 + length]
        position += 12 + length
    return chunks


def objection(kind: str, content: bytes, image: ImageFile) -> str:
    """Why a file whose head was read is refused, in words that follow its name; '' where it is not."""
    if getattr(image, "is_animated", False):
        return f"is animated ({getattr(image, 'n_frames', 2)} frames); send one of its frames as a file of its own"
    if kind == "PNG":
        return _png_objection(png_chunks(content))
    if kind == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        return "has CMYK pixels without Adobe's marker, which viewers show differently; convert it to RGB"
    if kind == "BMP":
        return _bmp_objection(content)
    return ""


def _png_objection(chunks: dict[bytes, bytes]) -> str:
    """Colours that viewers do not show as sRGB, said otherwise than by an ICC profile."""
    if chunks.get(b"cICP", b"")[:2] not in {b"", b"\x01\x0d"}:  # BT.709 primaries, sRGB's curve
        return "says that its colours are not sRGB (cICP); convert it to sRGB"
    if b"iCCP" in chunks or b"sRGB" in chunks or len(chunks.get(b"gAMA", b"")) != 4:
        return ""
    gamma = int.from_bytes(chunks[b"gAMA"], "big") / 100_000
    if abs(gamma * 2.2 - 1.0) > 0.02:
        return f"has the gamma {gamma:g} where sRGB has 0.45455; convert it to sRGB"
    return ""


def _bmp_objection(content: bytes) -> str:
    header, compression = struct.unpack_from("<I", content, 14)[0], struct.unpack_from("<I", content, 30)[0]
    if header not in _BMP_HEADERS:
        return f"is a BMP file with a header of {header} bytes; convert it to PNG"
    if compression not in {0, 3}:
        return "is a compressed BMP file; convert it to PNG"
    if header == 124 and content[70:74] in {b"DEBM", b"KNIL"}:  # PROFILE_EMBEDDED, PROFILE_LINKED
        return "is a BMP file with a colour profile; convert it to PNG"
    return ""
