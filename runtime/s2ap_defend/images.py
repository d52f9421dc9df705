"""Bytes and files to images: float32 [C, H, W] in [0, 1], never resized or converted silently."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from s2ap_defend.errors import InputError
from s2ap_defend.types import Float32

MAX_PIXELS = 64 * 1024 * 1024
MODES = {1: "L", 3: "RGB"}


def decode_image(data: bytes, shape: tuple[int, int, int], *, name: str = "image") -> Float32:
    """Decode one PNG or JPEG image.

    Args:
        data: The encoded image.
        shape: (C, H, W) that the model takes; C is 1 (grey) or 3 (RGB).
        name: What to call the image in messages.

    Raises:
        InputError: If the bytes are no image, or an image of another size; colour is converted only between grey,
            palette and RGB images without transparency.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise InputError(f"the model takes {channels} channels, which no image file has; send an array instead")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        raise InputError(f"{name} is not a PNG or JPEG image that can be read ({_reason(error)})") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"{name} has {image.width}x{image.height} pixels, the limit is {MAX_PIXELS}")
        if (image.height, image.width) != (height, width):
            raise InputError(
                f"{name} is {image.width}x{image.height} pixels, the model takes {width}x{height}; "
                "resize it as the training data was"
            )
        try:
            pixels = np.asarray(_to_mode(image, MODES[channels], name), dtype=np.float32)
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{name} is damaged ({_reason(error)})") from error
    return (pixels.reshape(height, width, channels) / np.float32(255.0)).transpose(2, 0, 1)


def load_images(path: Path, shape: tuple[int, int, int]) -> Float32:
    """Read the images of one file as [N, C, H, W].

    .png, .jpg and .jpeg hold one image; .npy holds [C, H, W] or [N, C, H, W]; .npz the same under the key `image`,
    `images` or its only key.

    Raises:
        InputError: If the file cannot be read or holds something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    suffix = path.suffix.lower()
    if suffix in {".png", ".jpg", ".jpeg"}:
        return decode_image(data, shape, name=str(path))[None]
    if suffix in {".npy", ".npz"}:
        return _as_batch(_load_array(data, path), path)
    raise InputError(f"{path} has the ending {suffix or 'none'}; known are .png, .jpg, .jpeg, .npy and .npz")


def check_images(images: object, shape: tuple[int, int, int]) -> Float32:
    """Check that `images` is float32 [N, *shape] in [0, 1] with N > 0 and return it contiguous.

    Raises:
        InputError: With the first thing that is wrong.
    """
    expected = f"float32 [N, {', '.join(map(str, shape))}] in [0, 1]"
    if not isinstance(images, np.ndarray):
        raise InputError(f"images are {type(images).__name__}, expected a numpy array {expected}")
    if images.dtype != np.float32:
        raise InputError(f"images have dtype {images.dtype}, expected {expected}; convert with .astype('float32')")
    if images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(f"images have shape {list(images.shape)}, expected {expected}")
    if len(images) == 0:
        raise InputError(f"the batch is empty, expected at least one image, {expected}")
    low, high = images.min(), images.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"images hold NaN or infinite values, expected {expected}")
    if low < 0.0 or high > 1.0:
        raise InputError(f"image values lie in [{low:g}, {high:g}], expected {expected}; divide 8-bit pixels by 255")
    return np.ascontiguousarray(images)


def _to_mode(image: Image.Image, mode: str, name: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        raise InputError(f"{name} has transparency, the model takes {mode}; flatten it first")
    if image.mode in {"1", "L", "P", "RGB", "CMYK", "YCbCr"}:
        return image.convert(mode)
    raise InputError(f"{name} has the pixel format {image.mode}, the model takes 8-bit {mode}")


def _load_array(data: bytes, path: Path) -> np.ndarray:
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a numpy file without pickled objects ({_reason(error)})") from error
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        names = list(loaded.files)
        key = next((name for name in ("image", "images") if name in names), names[0] if len(names) == 1 else None)
        if key is None:
            raise InputError(f"{path} holds the arrays {names or 'none'}, expected one called 'images'")
        try:
            return np.asarray(loaded[key])
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"{path}: array {key} cannot be read ({_reason(error)})") from error


def _as_batch(array: np.ndarray, path: Path) -> Float32:
    if array.dtype != np.float32:
        raise InputError(f"{path} holds dtype {array.dtype}, expected float32 in [0, 1]")
    if array.ndim == 3:
        return array[None]
    if array.ndim != 4:
        raise InputError(f"{path} holds shape {list(array.shape)}, expected [C, H, W] or [N, C, H, W]")
    return array


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text.replace("<_io.BytesIO object", "the bytes").split(" at 0x")[0]
    return text or type(error).__name__
