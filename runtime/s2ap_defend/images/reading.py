"""Image files and bytes to float32 [C, H, W] in [0, 1]."""

from pathlib import Path
from typing import Literal, get_args

from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.images.picture import COLOUR_MODES, Picture, open_picture
from s2ap_defend.resizing import resize as resized
from s2ap_defend.types import Float32, Resize


def read(
    image: str | Path | bytes,
    shape: tuple[int, int, int] | None = None,
    *,
    on_white: bool = False,
    resize: Resize | None = None,
    name: str | None = None,
) -> Float32:
    """Read an image as a viewer shows it, or refuse it; what becomes of every kind of file is in docs/images.md.

        classifier(read("photo.jpg", classifier.input_shape, resize="crop")[None])

    Args:
        image: A path, or the bytes of a file.
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
    content = image if isinstance(image, bytes) else content_of(Path(image))
    picture = open_picture(content, name or ("the image" if isinstance(image, bytes) else str(image)))
    return fitted(picture, shape, on_white=on_white, resize=resize)


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
    return resized(pixels, (height, width), resize or "crop")


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
