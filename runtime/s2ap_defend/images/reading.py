"""Image files and bytes to float32 [C, H, W] in [0, 1]."""

import io
import os
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from PIL import Image, ImageOps

from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.images.picture import COLOUR_MODES, Picture, open_picture, reason
from s2ap_defend.resizing import resize as resized
from s2ap_defend.types import Float32, Resize

_OF_PILLOW = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # what a PNG file holds as it is


def read(
    image: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image,
    shape: tuple[int, int, int] | None = None,
    *,
    on_white: bool = False,
    resize: Resize | None = None,
    name: str | None = None,
) -> Float32:
    """Read an image as a viewer shows it, or refuse it; what becomes of every kind of file is in docs/images.md.

        classifier(read("photo.jpg", classifier.input_shape, resize="crop")[None])

    Args:
        image: A path, the bytes of a file, a file open for reading bytes, or an image of Pillow, which is read as the
            PNG file of it would be.
        shape: (C, H, W) that the model takes; C is 1 (grey) or 3 (RGB), to which images are converted. None takes the
            image as it is.
        on_white: Composite what is transparent on white; otherwise it is refused.
        resize: What becomes of an image of another size, see `Resize`; None refuses it.
        name: What to call it in messages; the path by default.

    Returns:
        float32 [C, H, W] in [0, 1].

    Raises:
        InputError: If it is no image that is read, or one of another size.
    """
    named = str(image) if isinstance(image, str | os.PathLike) else "the image"
    picture = open_picture(_bytes(image), name or named)
    return fitted(picture, shape, on_white=on_white, resize=resize)


def _bytes(image: object) -> bytes:
    """The bytes of a file, whatever stands for it.

    Raises:
        InputError: If they cannot be had.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return content_of(Path(image))
    if isinstance(image, Image.Image):
        return _of_pillow(image)
    content = image.read() if hasattr(image, "read") else None
    if not isinstance(content, bytes):
        what = "a file of text" if isinstance(content, str) else f"a {type(image).__name__}"
        raise InputError(
            f"the image is {what}, expected a path, the bytes of a file, a file open for reading bytes ('rb') or an "
            "image of Pillow"
        )
    return content


def _of_pillow(image: Image.Image) -> bytes:
    """An image of Pillow as a PNG file, turned as its EXIF says, which such files do not have."""
    if image.mode not in _OF_PILLOW:
        raise InputError(
            f"the image has Pillow's mode {image.mode}, expected one of {', '.join(_OF_PILLOW)}; convert it with "
            ".convert('RGB')"
        )
    file = io.BytesIO()
    try:
        ImageOps.exif_transpose(image).save(file, "PNG", compress_level=0)
    except Exception as error:  # what Pillow raises depends on where the damage is
        raise InputError(f"the image of Pillow cannot be read ({reason(error)}); open its file again") from error
    return file.getvalue()


def fitted(
    picture: Picture,
    shape: tuple[int, int, int] | None = None,
    *,
    on_white: bool = False,
    resize: Resize | None = None,
) -> Float32:
    """Decode an image whose head was read, once, as a model takes it.

    Args:
        picture: The image.
        shape: (C, H, W), C 1 or 3; None takes the image as it is.
        on_white: Composite what is transparent on white; otherwise it is refused.
        resize: What becomes of an image of another size, see `Resize`; None refuses it.

    Returns:
        float32 [C, H, W] in [0, 1].

    Raises:
        InputError: If it is damaged, transparent or of another size.
    """
    channels, *size = shape or (picture.channels, picture.height, picture.width)
    if channels not in COLOUR_MODES:
        raise InputError(f"the model takes {channels} channels, which no image file has; send an array instead")
    height, width = size
    if resize is None and (picture.height, picture.width) != (height, width):
        raise InputError(
            f"{picture.name} is {picture.width}x{picture.height} pixels, the model takes {width}x{height}; resize it "
            "as the training data was, or let resize (--resize) do it"
        )
    pixels = picture.pixels(channels, white=on_white).transpose(2, 0, 1)
    return resized(pixels, (height, width), "crop" if resize is None else resize)


def chosen_resize(wanted: Resize | Literal["trained"] | None, trained: Resize | None) -> Resize | None:
    """How images of another size are resized, where 'trained' stands for what was done to the training images.

    Args:
        wanted: What the user says.
        trained: What the model file says of its training images; None: nothing was resized.

    Raises:
        RecipeError: If the file does not say what the user asks for.
    """
    if wanted != "trained":
        return wanted
    if trained is None:
        others = ", ".join(get_args(Resize))
        raise RecipeError(f"the model file does not say that its training images were resized; choose one of {others}")
    return trained


def check_readable(path: Path) -> None:
    """Refuse a path of nothing.

    Raises:
        InputError: If there is no such file.
    """
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {_why(error)}") from error


def content_of(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {_why(error)}") from error


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
