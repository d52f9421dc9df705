"""Images in one .npz file; never a pickle.

Keys are either `images` and `labels`, of which the test part is cut, or `x_train`, `y_train`, `x_test` and `y_test`;
`classes` may name the classes.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32, Int64
from s2ap_train.data.source import DataSource, Resizing, Subset, array_subset, check_labels, check_test_labels

WHOLE = ("images", "labels")
SPLIT = ("x_train", "y_train", "x_test", "y_test")
NAMES = "classes"
CHANNELS = (1, 3, 4)
_EXPECTED = f"expected {' and '.join(WHOLE)}, or {', '.join(SPLIT)}; and {NAMES}, if the classes have names"


def open_npz(path: Path, resizing: Resizing | None) -> DataSource:
    """Read an .npz file of images and labels.

    Images are uint8 in 0..255 or float32 in [0, 1]; [N, H, W, C], [N, C, H, W] or [N, H, W] with C 1, 3 or 4. Labels
    are integers [N] or [N, 1] from 0.

    Raises:
        RecipeError: If the file cannot be read or holds anything else.
    """
    arrays = _load(path)
    names = set(arrays) - {NAMES}
    if names not in ({*WHOLE}, {*SPLIT}):
        raise RecipeError(f"{path} holds the arrays {', '.join(sorted(arrays)) or 'none'}; {_EXPECTED}")
    keys = WHOLE if names == {*WHOLE} else SPLIT
    labels = {key: _labels(arrays[key], f"{path}: {key}") for key in keys[1::2]}
    if NAMES in arrays:
        classes = _class_names(arrays[NAMES], f"{path}: {NAMES}")
    else:
        classes = _numbered(labels[keys[1]], f"{path}: {keys[1]}")
    parts, shapes = [], []
    for x, y in zip(keys[::2], keys[1::2], strict=True):
        name = f"{path}: {x}"
        if x == "x_test":
            check_test_labels(labels[y], classes, f"{path}: {y}")
        else:
            check_labels(labels[y], classes, f"{path}: {y}")
        if len(arrays[x]) != len(labels[y]):
            raise RecipeError(
                f"{name} holds {len(arrays[x])} images, {y} {len(labels[y])} labels; give one label an image"
            )
        part, shape = _subset(arrays[x], labels[y], name, resizing)
        parts.append(part)
        shapes.append(shape)
    if len({shape[0] for shape in shapes}) > 1:
        raise RecipeError(f"{path}: x_train has {shapes[0][0]} channels, x_test {shapes[1][0]}; convert one of them")
    if resizing is None and len({*shapes}) > 1:
        raise RecipeError(
            f"{path}: x_train holds images of {_size(shapes[0])}, x_test of {_size(shapes[1])}; set data.image_size"
        )
    return DataSource(parts[0], parts[1] if len(parts) > 1 else None, classes, path.stem)


def unlabelled_npz(path: Path, resizing: Resizing | None) -> Subset | None:
    """The images of an .npz file that holds nothing else, as of one class; None: it holds more.

    Raises:
        RecipeError: If the file cannot be read or the images are none of those that are read.
    """
    arrays = _load(path)
    if arrays.keys() != {WHOLE[0]}:
        return None
    images = arrays[WHOLE[0]]
    part, _ = _subset(images, np.zeros(images.shape[:1], np.int64), f"{path}: {WHOLE[0]}", resizing)
    return part


def is_channels_last(shape: tuple[int, ...], name: str) -> bool:
    """Whether images of this shape [N, ?, ?, ?] are [N, H, W, C], judged by which dimension can be the channels.

    Where one is 4 and the other 1 or 3, the four are pixels.

    Raises:
        RecipeError: If both or neither can.
    """
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first and last and 4 in (shape[1], shape[3]) and shape[1] != shape[3]:
        return shape[1] == 4
    if first == last:
        found = (
            "either dimension 1 or 3 may be the channels"
            if first
            else "neither dimension 1 nor 3 is 1, 3 or 4 channels"
        )
        raise RecipeError(
            f"{name} has shape {list(shape)}: {found}; expected [N, H, W, C] or [N, C, H, W] with C 1, 3 or 4 and "
            "H and W neither"
        )
    return last


def _load(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise RecipeError(f"data.root {path} is no file; expected an .npz file, {_EXPECTED}")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise RecipeError(f"{path} holds one array without a name; save it with numpy.savez, {_EXPECTED}")
            unknown = sorted({*loaded.files} - {*WHOLE, *SPLIT, NAMES})
            if unknown:
                raise RecipeError(f"{path} holds the array {unknown[0]!r}, which is not known; {_EXPECTED}")
            return {name: loaded[name] for name in loaded.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        raise RecipeError(f"{path} cannot be read as .npz ({_reason(error)}); save it again") from error


def _reason(error: Exception) -> str:
    """Why an .npz file cannot be read; not NumPy's advice to unpickle what it does not know."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "pickle" not in text:
        return text
    if "file contains pickled" in text:
        return "it is neither a zip of arrays, as numpy.savez writes it, nor an array"
    return "an array in it holds Python objects, which are never read, or is damaged"


def _labels(labels: NDArray[Any], name: str) -> Int64:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise RecipeError(
            f"{name} is {labels.dtype} {list(labels.shape)}, expected integers [N], the classes numbered from 0"
        )
    return labels.astype(np.int64)


def _numbered(labels: Int64, name: str) -> tuple[str, ...]:
    highest = int(labels.max(initial=0))
    if highest >= max(len(labels), 1):
        raise RecipeError(
            f"{name} goes up to {highest} with {len(labels)} labels; number the classes from 0 without gaps"
        )
    if highest > 0 and int(labels.min()) == 1:
        raise RecipeError(f"{name} starts at 1; number the classes from 0: subtract 1")
    return tuple(str(label) for label in range(highest + 1))


def _class_names(names: NDArray[Any], name: str) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U":
        raise RecipeError(f"{name} is {names.dtype} {list(names.shape)}, expected text [K]")
    if len({*names.tolist()}) < len(names):
        raise RecipeError(f"{name} names a class twice; give each of the {len(names)} classes a name of its own")
    return tuple(names.tolist())


def _subset(
    images: NDArray[Any], labels: Int64, name: str, resizing: Resizing | None
) -> tuple[Subset, tuple[int, int, int]]:
    if images.ndim == 3:
        images = images[..., None]
        channels_last = True
    elif images.ndim == 4:
        channels_last = is_channels_last(images.shape, name)
    else:
        raise RecipeError(f"{name} has shape {list(images.shape)}, expected [N, H, W, C], [N, C, H, W] or [N, H, W]")
    if 0 in images.shape:
        raise RecipeError(f"{name} has shape {list(images.shape)}, which holds no pixels")
    if images.dtype == np.float32:
        _check_range(images, name)
    elif images.dtype != np.uint8:
        raise RecipeError(f"{name} is {images.dtype}, expected uint8 in 0..255 or float32 in [0, 1]; convert it")
    height, width, channels = images.shape[1:] if channels_last else (*images.shape[2:], images.shape[1])
    part = array_subset(images, labels, channels_last=channels_last, resizing=resizing)
    return part, (channels, height, width)


def _check_range(images: Float32, name: str) -> None:
    low, high = float(images.min()), float(images.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RecipeError(
            f"{name} holds NaN or infinite values, expected float32 in [0, 1]; repair or remove those images"
        )
    if low < 0.0 or high > 1.0:
        cure = "divide 8-bit pixels by 255" if low >= 0.0 else "undo their normalisation"
        raise RecipeError(f"{name} lies in [{low:g}, {high:g}], expected float32 in [0, 1]; {cure}")


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[2]}x{shape[1]}"
