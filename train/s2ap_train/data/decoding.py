"""Image files to arrays, many at a time, read and resized by what the runtime reads and resizes with."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.images import Picture, open_picture
from s2ap_defend.resizing import unit_range
from s2ap_defend.types import Float32
from s2ap_train.data.containers import Container
from s2ap_train.data.source import OnRead, Resizing

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
        on_white: Whether what is transparent is composited on white; otherwise it is refused.
    """

    channels: int
    convert: bool
    height: int
    width: int
    resizing: Resizing | None
    like: str
    on_white: bool = False

    @classmethod
    def of(
        cls, file: ImageFile, *, channels: int | None, resizing: Resizing | None, on_white: bool = False
    ) -> "Decoder":
        """The decoder for files like this one, unless `channels` or `resizing` say more.

        Raises:
            RecipeError: If the file is no image that can be used.
        """
        found = _open(file)
        return cls(
            channels or found.channels,
            channels is not None,
            found.height,
            found.width,
            resizing,
            file.label,
            on_white,
        )

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
                pixels = np.stack([images[row] for row in same]).transpose(0, 3, 1, 2)
                out[np.add(same, start)] = unit_range(pixels) if self.resizing is None else self.resizing.apply(pixels)
            return len(images)

        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode")
        try:
            for count in pool.map(decode, range(0, len(files), _TOGETHER)):
                on_read(count)
        finally:
            pool.shutdown(cancel_futures=True)
        return out

    def _pixels(self, file: ImageFile) -> NDArray[np.uint8]:  # [H, W, C]
        found = _open(file)
        if found.channels != self.channels and not self.convert:
            raise RecipeError(
                f"{file.label} has {_colour(found.channels)}, {self.like} {_colour(self.channels)}; convert all with "
                "--set data.channels=3 (colour) or 1 (grey)"
            )
        if self.resizing is None and (found.height, found.width) != (self.height, self.width):
            raise RecipeError(
                f"{file.label} is {found.width}x{found.height} pixels, {self.like} {self.width}x{self.height}; set "
                "data.image_size (--image-size) to resize them"
            )
        try:
            return found.pixels(self.channels, white=self.on_white)
        except InputError as error:
            raise RecipeError(str(error)) from error


def _open(file: ImageFile) -> Picture:
    try:
        return open_picture(file.container.read(file.path), file.label)
    except InputError as error:
        raise RecipeError(str(error)) from error


def _colour(channels: int) -> str:
    return "grey pixels" if channels == 1 else "colour pixels"
