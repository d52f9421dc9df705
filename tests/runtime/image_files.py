"""Image files of every kind, 8x8 pixels, and what they show; for the decoder, the commands, the server and training."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

SIDE = 8
_RNG = np.random.default_rng(7)
COLOURS = _RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREYS = _RNG.integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8)
ALPHA = _RNG.integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8)
DEEP = _RNG.integers(0, 65536, (SIDE, SIDE, 4), dtype=np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_ADAM7 = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


@dataclass(frozen=True)
class Case:
    """A file, and what it shows: uint8 [H, W, C], or the words with which it is refused.

    Attributes:
        content: The file.
        shown: Its pixels; or the refusal.
        on_white: Its pixels where transparency is composited on white; None: the same.
        tolerance: Levels of 255 that the pixels may be off.
    """

    content: bytes
    shown: np.ndarray | str
    on_white: np.ndarray | None = None
    tolerance: int = 0


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Written by Pillow; arrays are [H, W, C]."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def frames(kind: str = "PNG", **options: object) -> bytes:
    """Three frames, of which `COLOURS` is the first."""
    rolled = [Image.fromarray(np.roll(COLOURS, i, axis=0)) for i in range(3)]
    return encoded(rolled[0], kind, save_all=True, append_images=rolled[1:], **options)


def png(samples: np.ndarray, *chunks: tuple[bytes, bytes], bits: int | None = None, interlaced: bool = False) -> bytes:
    """A PNG file of samples [H, W, C], uint8 or uint16, written here; bits below 8 are packed."""
    bits = bits or 8 * samples.itemsize
    header = struct.pack(">IIBBBBB", SIDE, SIDE, bits, _COLOUR_TYPES[samples.shape[2]], 0, 0, interlaced)
    parts = [samples[y::dy, x::dx] for y, dy, x, dx in _ADAM7] if interlaced else [samples]
    rows = b"".join(b"\0" + _row(row, bits) for part in parts for row in part)
    written = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in written
    )


def _row(row: np.ndarray, bits: int) -> bytes:
    if bits >= 8:
        return row.astype(f">u{bits // 8}").tobytes()
    return np.packbits(np.unpackbits(row[:, 0, None].astype(np.uint8), axis=1)[:, -bits:].ravel()).tobytes()


def two_pictures() -> bytes:
    """A JPEG file of two pictures (MPO, CIPA DC-007), of which `COLOURS` is the first."""
    first, second = (encoded(image, "JPEG", quality=100, subsampling=0) for image in (COLOURS, 255 - COLOURS))
    start = 2 + 4 + 4  # SOI, APP2's marker and length, 'MPF' and zero; offsets count from there
    table = b"MM\0*" + struct.pack(">IH", 8, 3) + struct.pack(">HHI4s", 0xB000, 7, 4, b"0100")
    table += struct.pack(">HHII", 0xB001, 4, 1, 2) + struct.pack(">HHII", 0xB002, 7, 32, 50) + bytes(4)
    size = len(first) + 4 + 4 + 82
    table += struct.pack(">IIIHH", 0x030000, size, 0, 0, 0) + struct.pack(">IIIHH", 0, len(second), size - start, 0, 0)
    assert len(table) == 82
    return first[:2] + struct.pack(">HH4s", 0xFFE2, 2 + 4 + 82, b"MPF\0") + table + first[2:] + second


def exif(orientation: int, order: str = "<") -> bytes:
    """EXIF with nothing but an orientation."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + start + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opaque = alpha / 255.0
    return np.rint(colours * opaque + 255.0 * (1.0 - opaque)).astype(np.uint8)


def levels(samples: np.ndarray) -> np.ndarray:
    """16-bit samples in 8 bits, as libpng's png_set_scale_16 and browsers round them."""
    return np.rint(samples.astype(np.float64) * 255.0 / 65535.0).astype(np.uint8)


def swapped_profile() -> bytes:
    """sRGB with the colours of red and green exchanged."""
    return SRGB.replace(b"rXYZ", b"tmp_", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmp_", b"gXYZ", 1)


def linear_grey_profile() -> bytes:
    """Grey whose values are light itself."""
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    start = 128 + 4 + 2 * 12
    table = struct.pack(">I", 2) + struct.pack(">4sII", b"wtpt", start, 20)
    table += struct.pack(">4sII", b"kTRC", start + 20, 12)
    size = start + 32
    head = struct.pack(">I4xI4s4s4s", size, 0x02400000, b"mntr", b"GRAY", b"XYZ ").ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + table + white + curve


def lit(greys: np.ndarray) -> np.ndarray:
    """sRGB's curve, from light to values."""
    light = greys / 255.0
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255.0 * curve).astype(np.uint8)


def _keyed(samples: np.ndarray, shown: np.ndarray, bits: int) -> tuple[bytes, np.ndarray]:
    """A file in which the first pixel's colour is transparent, and what it shows on white."""
    key = samples[0, 0]
    transparent = (samples == key).all(axis=2, keepdims=True)
    return png(samples, (b"tRNS", key.astype(">u2").tobytes()), bits=bits), np.where(transparent, 255, shown)


def _cases() -> dict[str, Case]:
    see_through = "has transparency"
    rgb, cmyk = Image.fromarray(COLOURS), Image.fromarray(COLOURS).convert("CMYK")
    palette = rgb.quantize(8)
    indices, table = np.asarray(palette), np.array(palette.getpalette()).reshape(-1, 3)
    shown = table[indices].astype(np.uint8)
    alphas = np.arange(len(table), dtype=np.uint8) * 30
    two_bits = GREYS // 64
    cmyk_file = encoded(cmyk, "JPEG")
    mark = cmyk_file.index(b"\xff\xee")
    ycck = bytearray(cmyk_file)
    ycck[mark + 15] = 2
    keyed = {
        "grey": _keyed(GREYS, GREYS, 8),
        "RGB": _keyed(COLOURS, COLOURS, 8),
        "grey 16": _keyed(DEEP[..., :1], levels(DEEP[..., :1]), 16),
        "RGB 16": _keyed(DEEP[..., :3], levels(DEEP[..., :3]), 16),
        "grey 2": _keyed(two_bits, two_bits * 85, 2),
        "grey 1": _keyed(two_bits // 2, two_bits // 2 * 255, 1),
    }
    with_alpha, grey_alpha = np.dstack([COLOURS, ALPHA]), np.dstack([GREYS, ALPHA])
    deep_white = over_white(levels(DEEP[..., :3]), levels(DEEP[..., 3:]))
    deep_grey_white = over_white(levels(DEEP[..., :1]), levels(DEEP[..., 1:2]))
    turned = np.rot90(COLOURS, -1)
    return {
        "PNG": Case(encoded(COLOURS), COLOURS),
        "grey PNG": Case(encoded(GREYS), GREYS),
        "WebP": Case(encoded(COLOURS, "WEBP", lossless=True), COLOURS),
        "BMP": Case(encoded(COLOURS, "BMP"), COLOURS),
        "JPEG": Case(encoded(np.full_like(COLOURS, 90), "JPEG"), np.full_like(COLOURS, 90)),
        "turned PNG": Case(encoded(COLOURS, exif=exif(6)), turned),
        "turned WebP": Case(encoded(COLOURS, "WEBP", lossless=True, exif=exif(6)), turned),
        "turned JPEG": Case(encoded(COLOURS, "JPEG", quality=100, subsampling=0, exif=exif(6, ">")), turned, None, 4),
        "grey 16": Case(png(DEEP[..., :1]), levels(DEEP[..., :1])),
        "RGB 16": Case(png(DEEP[..., :3]), levels(DEEP[..., :3])),
        "RGB 16 interlaced": Case(png(DEEP[..., :3], interlaced=True), levels(DEEP[..., :3])),
        "RGBA": Case(encoded(with_alpha), see_through, over_white(COLOURS, ALPHA)),
        "grey with alpha": Case(encoded(grey_alpha), see_through, over_white(GREYS, ALPHA)),
        "RGBA 16": Case(png(DEEP), see_through, deep_white),
        "grey with alpha 16": Case(png(DEEP[..., :2]), see_through, deep_grey_white),
        "RGBA WebP": Case(
            encoded(with_alpha, "WEBP", lossless=True, exact=True), see_through, over_white(COLOURS, ALPHA)
        ),
        "RGBA, opaque": Case(encoded(np.dstack([COLOURS, np.full_like(ALPHA, 255)])), COLOURS),
        **{f"key {name}": Case(content, see_through, white) for name, (content, white) in keyed.items()},
        "palette": Case(encoded(palette), shown),
        "palette, one colour transparent": Case(
            encoded(palette, transparency=3), see_through, np.where(indices[..., None] == 3, 255, shown)
        ),
        "palette with alpha": Case(
            encoded(palette, transparency=alphas.tobytes()), see_through, over_white(shown, alphas[indices][..., None])
        ),
        "CMYK": Case(cmyk_file, np.asarray(Image.open(io.BytesIO(cmyk_file)).convert("RGB"))),
        "YCCK": Case(bytes(ycck), np.asarray(Image.open(io.BytesIO(ycck)).convert("RGB"))),
        "CMYK unmarked": Case(cmyk_file[:mark] + cmyk_file[mark + 16 :], "CMYK pixels without Adobe's marker"),
        "two pictures, JPEG": Case(two_pictures(), COLOURS, None, 4),
        "animated PNG": Case(frames(), "is animated (3 frames)"),
        "animated WebP": Case(frames("WEBP"), "is animated"),
        "GIF": Case(frames("GIF"), "is GIF, which is not read"),
        "TIFF": Case(frames("TIFF"), "is TIFF, which is not"),
        "JPEG 2000": Case(encoded(rgb, "JPEG2000"), "is JPEG 2000, which is not read; convert it to PNG"),
        "AVIF": Case(b"\0\0\0\x1cftypavif\0\0\0\0", "is AVIF, which is not read"),
        "sRGB profile": Case(encoded(COLOURS, icc_profile=SRGB), COLOURS),
        "sRGB profile in grey": Case(encoded(GREYS, icc_profile=SRGB), GREYS),
        "swapped profile": Case(encoded(COLOURS, icc_profile=swapped_profile()), COLOURS[..., [1, 0, 2]], None, 1),
        "swapped profile, WebP": Case(
            encoded(COLOURS, "WEBP", lossless=True, icc_profile=swapped_profile()), COLOURS[..., [1, 0, 2]], None, 1
        ),
        "swapped profile with alpha": Case(
            encoded(with_alpha, icc_profile=swapped_profile()),
            see_through,
            over_white(COLOURS[..., [1, 0, 2]], ALPHA),
            1,
        ),
        "linear grey profile": Case(encoded(GREYS, icc_profile=linear_grey_profile()), lit(GREYS), None, 1),
        "damaged profile": Case(encoded(COLOURS, icc_profile=SRGB[:200]), "has a colour profile that cannot be used"),
        "linear gamma": Case(png(COLOURS, (b"gAMA", struct.pack(">I", 100_000))), "has the gamma 1 where sRGB has"),
        "usual gamma": Case(png(COLOURS, (b"gAMA", struct.pack(">I", 45_455))), COLOURS),
        "HDR": Case(png(COLOURS, (b"cICP", b"\x09\x10\0\x01")), "says that its colours are not sRGB (cICP)"),
        "compressed BMP": Case(
            (bmp := encoded(COLOURS, "BMP"))[:30] + struct.pack("<I", 1) + bmp[34:], "is a compressed BMP file"
        ),
        "cut off": Case(encoded(COLOURS)[:90], "damaged"),
        "text": Case(b"no image", "is no PNG, JPEG, WebP or BMP image"),
    }


CASES = _cases()
