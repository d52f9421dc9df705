"""Arrays of images, checked; and the files that hold one image or many."""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL.Image import Image

from s2ap_defend.errors import InputError
from s2ap_defend.images.kinds import OTHER_SUFFIXES, SUFFIXES
from s2ap_defend.images.picture import reason
from s2ap_defend.images.reading import check_readable, content_of, read
from s2ap_defend.types import Float32, Resize

ARRAY_SUFFIXES = (".npy", ".npz")
_ONE = int(np.float32(1.0).view(np.uint32))
_BROKEN = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def load_images(
    path: Path, shape: tuple[int, int, int], *, on_white: bool = False, resize: Resize | None = None
) -> Float32:
    """Read the images of one file as [N, C, H, W].

    An image file holds one, see `read`; .npy holds [C, H, W] or [N, C, H, W]; .npz the same under the key `image`,
    `images` or its only key. Arrays are taken as they are: `on_white` and `resize` are for image files.

    Raises:
        InputError: If the file cannot be read or holds something else.
    """
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return _as_batch(_load_array(content_of(path), path), path)
    if suffix in (*SUFFIXES, *OTHER_SUFFIXES):
        return read(path, shape, on_white=on_white, resize=resize)[None]
    check_readable(path)
    known = ", ".join((*SUFFIXES, *ARRAY_SUFFIXES))
    raise InputError(f"{path} has the ending {suffix or 'none'}; known are {known}")


def are_pixels(numbers: Float32) -> bool:
    """Whether all numbers are in [0, 1], by one look at each; -0 is not taken for one of them.

    The bits of such numbers, read as an integer, ascend with them, and those of all others lie above that of 1.
    """
    bits = numbers.view(np.uint32)
    return bool(bits.item(bits.argmax()) <= _ONE)


def check_images(images: object, shape: tuple[int, int, int]) -> Float32:
    """Check that `images` is float32 [N, *shape] in [0, 1] with N > 0 and return it contiguous.

    Raises:
        InputError: With the first thing that is wrong.
    """
    if (
        isinstance(images, np.ndarray)
        and images.dtype == np.float32
        and images.shape[1:] == shape
        and images.size
        and are_pixels(images)
    ):
        return np.ascontiguousarray(images)
    return _checked(images, shape, f"float32 [N, {', '.join(map(str, shape))}] in [0, 1]")


def _checked(images: object, shape: tuple[int, int, int], expected: str) -> Float32:
    """Images among which something is wrong, or only a zero is negative."""
    if not isinstance(images, np.ndarray):
        raise InputError(f"images are {type(images).__name__}, expected a numpy array {expected}{_to_array(images)}")
    if images.dtype != np.float32:
        scaled = "(images / 255).astype('float32'), where 255 is the largest pixel that there can be"
        how = scaled if images.dtype.kind in "iu" else ".astype('float32')"
        raise InputError(f"images have dtype {images.dtype}, expected {expected}; convert with {how}")
    if images.ndim != 4 or images.shape[1:] != shape:
        how = _to_shape(images.shape, shape)
        raise InputError(f"images have shape {list(images.shape)}, expected {expected}{how}")
    if len(images) == 0:
        raise InputError(f"the batch is empty, expected at least one image, {expected}")
    low, high = images.min(), images.max()
    if low >= 0.0 and high <= 1.0:  # -0 is a pixel; false where one is no number
        return np.ascontiguousarray(images)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"images hold NaN or infinite values, expected {expected}")
    how = "do not normalise, the file does" if low < 0.0 and high - low < 16.0 else "divide 8-bit pixels by 255"
    raise InputError(f"image values lie in [{low:g}, {high:g}], expected {expected}; {how}")


def _to_array(images: object) -> str:
    """How something else becomes an array, in words that follow what is expected; '' where that is not known."""
    if hasattr(images, "detach"):
        return "; a torch tensor becomes one by .detach().cpu().numpy()"
    if isinstance(images, str | bytes | Path | Image):
        return "; s2ap_defend.images.read makes one image of a file, its bytes or a Pillow image"
    if isinstance(images, list | tuple) and images and isinstance(images[0], np.ndarray):
        return "; join arrays of one image each with numpy.stack"
    return ""


def _to_shape(found: tuple[int, ...], shape: tuple[int, int, int]) -> str:
    """How an array of another shape is made to fit (C, H, W), in words as those of `_to_array`."""
    channels, *size = shape
    last = (*size, channels)
    if found == shape:
        return "; a single image goes in as images[None]"
    if found[-3:] == last and len(found) in {3, 4}:
        moved = "images.transpose(0, 3, 1, 2)" if len(found) == 4 else "images.transpose(2, 0, 1)[None]"
        return f"; put the channels first: {moved}"
    if channels == 1 and found[-2:] == tuple(size) and len(found) in {2, 3}:
        return "; give grey images their channel: " + ("images[:, None]" if len(found) == 3 else "images[None, None]")
    if len(found) == 4 and found[1] == channels:
        return "; s2ap_defend.images.resize brings them to that size"
    return ""


def _load_array(data: bytes, path: Path) -> np.ndarray:
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
    except _BROKEN as error:
        raise InputError(f"{path} is not a numpy file without pickled objects ({reason(error)})") from error
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        names = list(loaded.files)
        key = next((name for name in ("image", "images") if name in names), names[0] if len(names) == 1 else None)
        if key is None:
            raise InputError(f"{path} holds the arrays {names or 'none'}, expected one called 'images'")
        try:
            return np.asarray(loaded[key])
        except _BROKEN as error:
            raise InputError(f"{path}: array {key} cannot be read ({reason(error)})") from error


def _as_batch(array: np.ndarray, path: Path) -> Float32:
    if array.dtype != np.float32:
        raise InputError(f"{path} holds dtype {array.dtype}, expected float32 in [0, 1]")
    if array.ndim == 3:
        return array[None]
    if array.ndim != 4:
        raise InputError(f"{path} holds shape {list(array.shape)}, expected [C, H, W] or [N, C, H, W]")
    return array
