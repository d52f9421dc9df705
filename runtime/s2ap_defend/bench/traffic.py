"""The images that a file is timed with, and where they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from s2ap_defend.bench.choices import TrafficKind
from s2ap_defend.errors import InputError
from s2ap_defend.images import Entry, ImageFiles
from s2ap_defend.types import Float32

T = TypeVar("T")
DEMONSTRATION = "demo"
"""Folder that `make demo` writes next to its file, with images N-clean-M.png and N-attacked-M.png."""


@dataclass(frozen=True)
class Traffic:
    """Images as they come.

    Attributes:
        images: float32 [N, C, H, W].
        kind: What they are called.
        source: Where they come from, in words.
        typical: Whether they are images at all. What a file does with noise says nothing of what clean images cost.
    """

    images: Float32
    kind: TrafficKind
    source: str
    typical: bool = True

    def first(self, count: int) -> Float32:
        """So many images, again from the first where there are fewer."""
        return np.asarray(self.images[np.arange(count) % len(self.images)])


def find_traffic(
    kind: TrafficKind, files: ImageFiles, model: Path, *, data: Sequence[Path], attacked: Sequence[Path], most: int
) -> Traffic:
    """The images of one kind.

    Mixed traffic is clean and attacked images in turn. Without data they come from the folder `demo` next to the file,
    and clean ones that are nowhere are uniform noise.

    Args:
        kind: What is wanted.
        files: How images are read.
        model: The model file.
        data: Files and folders of clean images.
        attacked: The same of attacked ones; nothing here makes them.
        most: Images that are needed.

    Raises:
        InputError: If images cannot be read, or attacked ones are wanted and there are none.
    """
    folder = model.absolute().parent / DEMONSTRATION
    parts: list[Float32] = []
    said: list[str] = []
    for name, given in (("clean", data), ("attacked", attacked)):
        if kind not in (name, "mixed"):
            continue
        if paths := given or sorted(folder.glob(f"*-{name}-*.png")):
            parts.append(_read(files, paths, most))
            said.append(f"{len(parts[-1])} {name} from {', '.join(map(str, given)) or folder}")
        elif name == "clean":
            parts.append(np.random.default_rng(0).random((most, *files.shape), dtype=np.float32))
            said.append(f"{most} images of uniform noise, for want of clean ones")
        else:
            raise InputError(
                f"--traffic {kind} needs attacked images, and there are none next to {model}; give some with "
                "--attacked: float32 [N, C, H, W] in [0, 1] as .npy or .npz, or a folder of lossless image files"
            )
    typical = kind == "attacked" or bool(data) or "noise" not in said[0]
    if len(parts) == 1:
        return Traffic(parts[0], kind, said[0], typical)
    turns = np.arange(most)
    clean, other = (part[turns // 2 % len(part)] for part in parts)
    images = np.where((turns % 2 == 0)[:, None, None, None], clean, other)
    return Traffic(images, kind, " in turn with ".join(said), typical)


def _read(files: ImageFiles, paths: Sequence[Path], most: int) -> Float32:
    """At most so many of the images that paths name, from all parts of them, shuffled.

    Raises:
        InputError: If one of them cannot be read.
    """
    names = [name for path in paths for name in files.names(path)]
    images = []
    for name in _evenly(names, most):
        for entry in [name] if isinstance(name, Entry) else files.images(name):
            if entry.image is None:
                raise InputError(entry.error)
            images.append(entry.image)
    chosen = np.stack(_evenly(images, most))
    return np.asarray(np.random.default_rng(0).permutation(chosen))


def _evenly(found: Sequence[T], most: int) -> list[T]:
    """So many at equal distances: a folder with a folder for each class gives images of all classes."""
    return [found[i] for i in np.linspace(0, len(found) - 1, min(len(found), most)).round().astype(int)]
