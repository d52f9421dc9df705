"""Folders and zips alike: the names of the files in them, and their bytes. Nothing is unpacked onto the disk."""

import os
import threading
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Protocol

from s2ap_defend.errors import RecipeError
from s2ap_defend.files import read_file

LARGEST_FILE = 256 * 1024 * 1024  # bytes of one image file or list
DEEPEST = 6  # folders below the root
_IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini"}


class Container(Protocol):
    """A tree of files.

    Attributes:
        path: The folder or zip.
        files: Paths of the files within it, with '/', sorted.
        folders: Paths of all folders within it, sorted, empty ones included.
    """

    path: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """Bytes of one file; several threads may read.

        Raises:
            RecipeError: If it cannot be read.
        """

    def label(self, name: str) -> str:
        """The file in messages."""


def open_container(path: Path, opened: ExitStack) -> Container:
    """Open a folder or a zip.

    Args:
        path: Of the folder or zip.
        opened: Closes the zip in the end.

    Raises:
        RecipeError: If there is none, or a zip holds names or files that cannot be trusted.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise RecipeError(
            f"data.root {path} does not exist; put a folder or zip there with train/CLASS/IMAGE and test/CLASS/IMAGE "
            "in it, or set data.root to where it lies"
        )
    try:
        archive = opened.enter_context(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise RecipeError(
            f"data.root {path} is neither a folder nor a zip that can be read ({error}); give a folder or zip of "
            "CLASS/IMAGE, or an .npz file"
        ) from error
    return Zip(path, archive)


class Folder:
    """A folder on the disk; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files: list[str] = []
        folders: list[str] = []
        try:
            self._walk(path, "", files, folders)
        except OSError as error:
            raise RecipeError(f"data.root {path} cannot be listed ({error})") from error
        self.files, self.folders = tuple(sorted(files)), tuple(sorted(folders))

    def _walk(self, folder: Path, prefix: str, files: list[str], folders: list[str]) -> None:
        if prefix.count("/") > DEEPEST:
            raise RecipeError(
                f"{folder} lies more than {DEEPEST} folders deep; is data.root {self.path} the right folder?"
            )
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_ignored(entry.name):
                    continue
                if entry.is_dir():
                    folders.append(prefix + entry.name)
                    self._walk(Path(entry.path), f"{prefix}{entry.name}/", files, folders)
                else:
                    files.append(prefix + entry.name)

    def read(self, name: str) -> bytes:
        """Bytes of one file."""
        path = self.path / name
        if path.exists() and not path.is_file():  # a pipe is waited for without end
            raise RecipeError(f"{self.label(name)} is a pipe or device, not a file; take it out of the folder")
        return read_file(path, LARGEST_FILE, self.label(name))

    def label(self, name: str) -> str:
        """The path."""
        return str(self.path / name)


class Zip:
    """A zip, read in place."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self._lock = threading.Lock()
        files: list[str] = []
        folders: set[str] = set()
        for entry in archive.infolist():
            name = entry.filename
            _check_name(name, path)
            parts = PurePosixPath(name).parts
            if any(map(_is_ignored, parts)):
                continue
            folders.update("/".join(parts[:end]) for end in range(1, len(parts)))
            if entry.is_dir():
                folders.add("/".join(parts))
                continue
            if entry.flag_bits & 1:
                raise RecipeError(f"{self.label(name)} is encrypted; pack the zip again without a password")
            if entry.file_size > LARGEST_FILE:
                raise RecipeError(
                    f"{self.label(name)} unpacks to {entry.file_size} bytes, the limit of one file is {LARGEST_FILE}"
                )
            files.append(name)
        if len({*files}) < len(files):
            twice = next(name for name in files if files.count(name) > 1)
            raise RecipeError(f"{self.label(twice)} is in the zip twice; pack it again")
        self.files, self.folders = tuple(sorted(files)), tuple(sorted(folders))

    def read(self, name: str) -> bytes:
        """Bytes of one file."""
        try:
            with self._lock:
                return self._archive.read(name)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
            raise RecipeError(f"{self.label(name)} is damaged ({error}); pack the zip again") from error

    def label(self, name: str) -> str:
        """The zip and the path in it."""
        return f"{self.path}: {name}"


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED


def _check_name(name: str, path: Path) -> None:
    parts = name.rstrip("/").split("/")
    if "\\" in name or ":" in parts[0] or any(part in {"", ".", ".."} for part in parts):
        raise RecipeError(f"{path} holds the name {name!r}, which points outside or nowhere; pack the zip again")
