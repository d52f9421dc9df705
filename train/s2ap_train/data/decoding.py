"""Image files to arrays, many at a time. The pixels are those that the runtime's `decode_image` gives."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from s2ap_defend.errors import RecipeError
from s2ap_defend.images import MAX_PIXELS, MODES
from s2ap_defend.types import Float32
from s2ap_train.data.containers import Container
from s2ap_train.data.source import OnRead, Resizing, unit_range

ENDINGS = (".png", ".jpg", ".jpeg")
_GREY = frozenset({"1", "L"})
_COLOUR = frozenset({"P", "RGB", "CMYK", "YCbCr"})
_TOGETHER = 64  # files of one task
_THREADS = 4  # Pillow decodes outside Python's lock; small images gain nothing from more


@dataclass(frozen=True)
class ImageFile:
    """One encoded image in a folder or zip."""

    container: Container
    path: str

    @property
    def label(self) -> str:
        """The file in messages."""
        return self.container.label(self.path)


@dataclass(frozen=True)
class Decoder:
    """Reads image files of one shape.

    Attributes:
        channels: 1 or 3.
        convert: Whether images with other channels are converted; otherwise they are refused.
        height: Of the files, in pixels; unused where they are resized.
        width: Of the files.
        resizing: Size that they are brought to; None takes them as they are.
        like: The file that gave channels, height and width, for messages.
    """

    channels: int
    convert: bool
    height: int
    width: int
    resizing: Resizing | None
    like: str

    @classmethod
    def of(cls, file: ImageFile, *, channels: int | None, resizing: Resizing | None) -> "Decoder":
        """The decoder for files like this one, unless `channels` or `resizing` say more.

        Raises:
            RecipeError: If the file is no image that can be used.
        """
        image = _open(file)
        found = _channels(image, file)
        return cls(channels or found, channels is not None, image.height, image.width, resizing, file.label)

    def read(self, files: Sequence[ImageFile], on_read: OnRead) -> Float32:
        """Decode files in threads: float32 [N, C, H, W] in [0, 1], in their order.

        Args:
            files: The files [N].
            on_read: Called with how many more are decoded, in the calling thread.

        Raises:
            RecipeError: With the first file that cannot be read or does not fit.
        """
        size = (self.height, self.width) if self.resizing is None else self.resizing.sides
        out = np.empty((len(files), self.channels, *size), dtype=np.float32)

        def decode(start: int) -> int:
            images = [self._pixels(file) for file in files[start : start + _TOGETHER]]
            for shape in {image.shape for image in images}:
                same = [row for row, image in enumerate(images) if image.shape == shape]
                pixels = unit_range(np.stack([images[row] for row in same]).transpose(0, 3, 1, 2))
                out[np.add(same, start)] = pixels if self.resizing is None else self.resizing.apply(pixels)
            return len(images)

        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode")
        try:
            for count in pool.map(decode, range(0, len(files), _TOGETHER)):
                on_read(count)
        finally:
            pool.shutdown(cancel_futures=True)
        return out

    def _pixels(self, file: ImageFile) -> NDArray[np.uint8]:  # [H, W, C]
        image = _open(file)
        found = _channels(image, file)
        if found != self.channels and not self.convert:
            raise RecipeError(
                f"{file.label} has {_colour(found)}, {self.like} {_colour(self.channels)}; set data.channels to 1 or 3 "
                "to convert them"
            )
        if self.resizing is None and image.size != (self.width, self.height):
            raise RecipeError(
                f"{file.label} is {image.width}x{image.height} pixels, {self.like} {self.width}x{self.height}; set "
                "data.image_size to resize them"
            )
        try:
            mode = MODES[self.channels]
            pixels = np.asarray(image if image.mode == mode else image.convert(mode), dtype=np.uint8)
        except Exception as error:  # what Pillow raises depends on where the damage is
            raise RecipeError(f"{file.label} is damaged ({_reason(error)}); replace or remove it") from error
        return pixels.reshape(image.height, image.width, self.channels)


def _open(file: ImageFile) -> Image.Image:
    content = file.container.read(file.path)
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    except UnidentifiedImageError as error:
        raise RecipeError(f"{file.label} is no PNG or JPEG image; replace or remove it") from error
    except Exception as error:  # as above; decompression bombs, too
        raise RecipeError(f"{file.label} cannot be read ({_reason(error)}); replace or remove it") from error
    if image.width * image.height > MAX_PIXELS:
        raise RecipeError(f"{file.label} has {image.width}x{image.height} pixels, the limit is {MAX_PIXELS}; remove it")
    return image


def _channels(image: Image.Image, file: ImageFile) -> int:
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        raise RecipeError(f"{file.label} has transparency; flatten it first")
    if image.mode in _GREY:
        return 1
    if image.mode in _COLOUR:
        return 3
    raise RecipeError(f"{file.label} has the pixel format {image.mode}, expected 8-bit grey or RGB; convert it")


def _colour(channels: int) -> str:
    return "grey pixels" if channels == 1 else "colour pixels"


def _reason(error: BaseException) -> str:
    return (
        " ".join(str(error).split()).split(" at 0x")[0].replace("<_io.BytesIO object", "the bytes")
        or type(error).__name__
    )
