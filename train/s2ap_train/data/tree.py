"""The files of one or several folders and zips as one tree of paths."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from s2ap_defend.errors import RecipeError
from s2ap_defend.images import OTHER_SUFFIXES, READ, SUFFIXES
from s2ap_defend.types import Int64
from s2ap_train.data.containers import Container
from s2ap_train.data.decoding import ImageFile

SPLITS = ("train", "test", "val", "valid", "validation")


@dataclass(frozen=True)
class Tree:
    """Files by their path in the data set.

    Attributes:
        label: The data set in messages.
        files: All files by path, sorted.
        folders: Paths of all folders, empty ones included.
    """

    label: str
    files: dict[str, ImageFile]
    folders: frozenset[str]

    def images(self, folder: str = "") -> list[str]:
        """Paths of the images below a folder, sorted."""
        return [path for path in self.files if path.startswith(folder) and path.lower().endswith(SUFFIXES)]

    def folders_in(self, folder: str) -> list[str]:
        """Names of the folders directly in `folder` ('' or a path that ends in '/'), sorted."""
        below = (path.removeprefix(folder) for path in self.folders if path.startswith(folder))
        return sorted(name for name in below if "/" not in name)

    def text(self, path: str) -> list[str]:
        """Lines of a text file.

        Raises:
            RecipeError: If it cannot be read as UTF-8.
        """
        file = self.files[path]
        try:
            return file.container.read(file.path).decode().splitlines()
        except UnicodeDecodeError as error:
            raise RecipeError(f"{file.label} is not UTF-8 text ({error.reason}); get it again") from error


@dataclass(frozen=True)
class Labelled:
    """Image files with their labels.

    Attributes:
        files: N files.
        labels: int64 [N].
    """

    files: list[ImageFile]
    labels: Int64


def read_tree(containers: Sequence[Container]) -> Tree:
    """Join containers to one tree.

    A folder around everything is left out. Of several containers, one with CLASS/IMAGE whose name ends in a split's
    (train, data-test.zip) is that split.

    Raises:
        RecipeError: If two containers hold the same path, or pictures are of kinds that are not read.
    """
    files: dict[str, ImageFile] = {}
    folders: set[str] = set()
    others: list[str] = []
    for container in containers:
        wrapper = _wrapper(container)
        inner = {path: path.removeprefix(wrapper) for path in container.files if path.startswith(wrapper)}
        split = _split_of(container, inner.values()) if len(containers) > 1 else ""
        folders.update(split + path.removeprefix(wrapper) for path in container.folders if path.startswith(wrapper))
        folders.update({split.rstrip("/")} - {""})
        for path, short in inner.items():
            name = split + short
            if name.lower().endswith(OTHER_SUFFIXES):
                others.append(container.label(path))
            if name in files:
                raise RecipeError(f"{container.label(path)} is also {files[name].label}; give each image once")
            files[name] = ImageFile(container, path)
    if len(others) > 1:
        raise RecipeError(f"{others[0]} and {len(others) - 1} more files are no {READ} images; convert or remove them")
    if others:
        raise RecipeError(f"{others[0]} is no {READ} image; convert or remove it")
    label = " and ".join(str(container.path) for container in containers)
    return Tree(label, dict(sorted(files.items())), frozenset(folders))


def _wrapper(container: Container) -> str:
    """The path of the folder that holds everything, with '/' at its end; '' where there is none."""
    wrapper = ""
    while True:
        tops = {path.removeprefix(wrapper).split("/")[0] for path in container.folders if path.startswith(wrapper)}
        inner = f"{wrapper}{next(iter(tops), '')}/"
        if len(tops) != 1 or tops <= {*SPLITS} or _has_images(container, wrapper) or _has_images(container, inner):
            return wrapper
        wrapper = inner


def _has_images(container: Container, folder: str) -> bool:
    """Whether images lie directly in a folder."""
    below = (path.removeprefix(folder) for path in container.files if path.startswith(folder))
    return any("/" not in name and name.lower().endswith(SUFFIXES) for name in below)


def _split_of(container: Container, paths: Iterable[str]) -> str:
    """'train/' and the like for a container that is one split; '' for one that holds splits."""
    word = re.split(r"[^a-z]+", container.path.stem.lower())[-1]
    images = [path for path in paths if path.lower().endswith(SUFFIXES)]
    flat = bool(images) and all(path.count("/") == 1 for path in images)
    return f"{word}/" if flat and word in SPLITS else ""
