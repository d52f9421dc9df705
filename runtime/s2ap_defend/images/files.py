"""The images that paths name: files as they are, and those in folders, to the bottom, without holding them all."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from s2ap_defend.errors import InputError
from s2ap_defend.images.arrays import ARRAY_SUFFIXES, check_images, load_images
from s2ap_defend.images.kinds import OTHER_SUFFIXES, SUFFIXES
from s2ap_defend.types import Float32, Resize


@dataclass(frozen=True)
class Entry:
    """One image of a file, or why a file or folder could not be read.

    Attributes:
        path: The file.
        index: Which image of an array file; 0 of an image file.
        of_many: Whether the file may hold several images.
        image: float32 [C, H, W]; None where it could not be read.
        error: Why.
    """

    path: Path
    index: int = 0
    of_many: bool = False
    image: Float32 | None = None
    error: str = ""


@dataclass
class LeftOut:
    """Files in folders that are no images by their endings.

    Attributes:
        count: How many.
        first: One of them.
    """

    count: int = 0
    first: Path | None = None

    def add(self, path: Path) -> None:
        """Count a file."""
        self.count += 1
        self.first = self.first or path


@dataclass(frozen=True)
class ImageFiles:
    """Image and array files for a model, read one after another.

    Attributes:
        shape: (C, H, W) that the model takes.
        on_white: See `read`.
        resize: See `read`.
        left_out: Files in folders that are no images; hidden ones are not counted.
    """

    shape: tuple[int, int, int]
    on_white: bool = False
    resize: Resize | None = None
    left_out: LeftOut = field(default_factory=LeftOut)

    def images(self, path: Path) -> Iterator[Entry]:
        """Images of a file, or of a folder and all folders in it, sorted by name; links to folders are not followed."""
        for file in self.names(path):
            if isinstance(file, Entry):
                yield file
            else:
                yield from self._of_file(file)

    def names(self, path: Path) -> Iterator[Path | Entry]:
        """The files that `images` reads, in its order, and what stands there for folders that hold none."""
        if not path.is_dir():
            yield path
            return
        empty = True
        for file in self._in_folder(path):
            empty = False
            yield file
        if empty:
            yield Entry(path, error=f"{path} holds no images; expected files that end in {', '.join(SUFFIXES)}")

    def _in_folder(self, folder: Path) -> Iterator[Path | Entry]:
        unreadable: list[OSError] = []
        for root, folders, files in os.walk(folder, onerror=unreadable.append):
            folders[:] = sorted(name for name in folders if not _is_hidden(name))
            for name in sorted(name for name in files if not _is_hidden(name)):
                path = Path(root, name)
                if path.suffix.lower() not in (*SUFFIXES, *OTHER_SUFFIXES):
                    self.left_out.add(path)
                elif path.exists() and not path.is_file():  # a pipe is waited for without end
                    yield Entry(path, error=f"{path} is a pipe or device, not a file")
                else:
                    yield path
        for error in unreadable:
            yield Entry(Path(error.filename), error=f"{error.filename} cannot be listed: {error.strerror}")

    def _of_file(self, path: Path) -> Iterator[Entry]:
        try:
            images = load_images(path, self.shape, on_white=self.on_white, resize=self.resize)
            images = check_images(images, self.shape)
        except InputError as error:
            text = str(error)
            yield Entry(path, error=text if str(path) in text else f"{path}: {text}")
            return
        many = path.suffix.lower() in ARRAY_SUFFIXES and len(images) > 1
        yield from (Entry(path, index, many, image) for index, image in enumerate(np.asarray(images)))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in {"__MACOSX", "Thumbs.db", "desktop.ini"}
