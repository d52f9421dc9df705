"""One image file: its head is read at once, its pixels as a viewer shows them when they are asked for."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile

from s2ap_defend.errors import InputError
from s2ap_defend.images import kinds, profiles
from s2ap_defend.images.samples import Samples, grey, is_grey_png, on_white, samples

COLOUR_MODES = {1: "L", 3: "RGB"}
_GREY_MODES = frozenset({"1", "L", "I;16", "LA"})
_MODES = _GREY_MODES | {"P", "RGB", "RGBA", "CMYK"}


@dataclass(frozen=True)
class Picture:
    """An image file whose head was read.

    Attributes:
        name: What to call it in messages.
        channels: 1 (grey) or 3 (colour); a palette is colour.
        height: As it is shown, EXIF's orientation applied, pixels.
        width: The same.
    """

    name: str
    channels: int
    height: int
    width: int
    _content: bytes = field(repr=False)
    _kind: str
    _image: ImageFile = field(repr=False)
    _orientation: int

    def pixels(self, channels: int, *, white: bool = False) -> NDArray[np.uint8]:
        """Decode it, once: uint8 [H, W, channels], sRGB.

        Args:
            channels: 1 or 3. Grey of colour is ITU-R 601's.
            white: Composite what is transparent on white; otherwise it is refused.

        Raises:
            InputError: If it is damaged, or transparent without `white`.
        """
        try:
            found = samples(self._image, self._content, self._kind)
            colours = profiles.to_srgb(found.colours, self._image.info.get("icc_profile"), self.name)
        except InputError:
            raise
        except Exception as error:  # what Pillow raises depends on where the damage is
            raise InputError(f"{self.name} is damaged ({reason(error)}); replace or remove it") from error
        finally:
            self._image.close()
        colours = self._opaque(Samples(colours, found.alpha), white)
        if colours.shape[2] != channels:
            colours = grey(colours) if channels == 1 else np.repeat(colours, 3, axis=2)
        return np.ascontiguousarray(_turned(colours, self._orientation))

    def _opaque(self, found: Samples, white: bool) -> NDArray[np.uint8]:
        if found.alpha is None or (found.alpha == 255).all():
            return found.colours
        if not white:
            raise InputError(f"{self.name} has transparency; put it on white with on_white (--on-white), or flatten it")
        return on_white(found.colours, found.alpha)


def open_picture(content: bytes, name: str) -> Picture:
    """Read the head of an image file.

    Args:
        content: The file's bytes.
        name: What to call it in messages.

    Raises:
        InputError: If it is no image, or one of a kind that is not read (docs/images.md).
    """
    kind = kinds.kind_of(content)
    if not kinds.is_read(kind):
        what = f"{kind}, which is not read" if kind else f"no {kinds.READ} image"
        raise InputError(f"{name} is {what}; " + ("convert it to PNG" if kind else "replace or remove it"))
    try:
        image = kinds.open_file(content, kind)
        why = kinds.objection(kind, content, image)
        channels = _channels(image, content, kind)
    except Exception as error:  # what Pillow raises depends on where the damage is
        raise InputError(f"{name} cannot be read as {kind} ({reason(error)}); replace or remove it") from error
    if image.width * image.height > kinds.MAX_PIXELS:
        why = f"has {image.width}x{image.height} pixels, the limit is {kinds.MAX_PIXELS}; make it smaller"
    if not why and image.mode not in _MODES:
        why = f"has the pixel format {image.mode}, expected grey, palette, RGB or CMYK; convert it"
    if why:
        raise InputError(f"{name} {why}")
    turn = kinds.orientation(image.info.get("exif", b""))
    height, width = (image.width, image.height) if turn >= 5 else (image.height, image.width)
    return Picture(name, channels, height, width, content, kind, image, turn)


def reason(error: BaseException) -> str:
    """What a library says is wrong, on one line and without addresses in memory."""
    text = " ".join(str(error).split()).replace("<_io.BytesIO object", "the bytes").split(" at 0x")[0]
    return text or type(error).__name__


def _channels(image: ImageFile, content: bytes, kind: str) -> int:
    """1 for grey, 3 for colour; Pillow opens 16-bit grey with alpha as RGBA."""
    is_grey = is_grey_png(content) if kind == "PNG" else image.mode in _GREY_MODES
    return 1 if is_grey else 3


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels [H, W, C] as EXIF's orientation shows them."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return pixels
