"""Reading files of bounded size, and writing them so that a reader never sees half of one."""

import os
import tempfile
from pathlib import Path

from s2ap_defend.errors import ModelFileError, RecipeError


def read_file(path: Path, limit_bytes: int, name: str) -> bytes:
    """Bytes of a file that messages call `name`.

    Raises:
        RecipeError: If it cannot be read, or has more than `limit_bytes`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise RecipeError(f"{name} cannot be read ({error.strerror or error})") from error
    if len(content) > limit_bytes:
        raise RecipeError(f"{name} has more than {limit_bytes} bytes, the limit of one file")
    return content


def check_writable(path: Path) -> None:
    """Check that `path` can be written, before the work that produces it; nothing is created, nor its folder.

    Raises:
        ModelFileError: If it cannot.
    """
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder; name a file to write, such as {path / 'model.onnx'}")
        if path.exists() and not path.is_file():  # a file would take its place
            raise ModelFileError(f"{path} is a pipe or device; name a file to write")
        with tempfile.TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror or error}") from error
    if path.exists() and not os.access(path, os.W_OK):
        raise ModelFileError(f"{path} exists and is read-only; choose another file")


def replace_file(path: Path, content: bytes) -> None:
    """Write a file next to `path`, then rename it: a reader sees the old content or the new one.

    Its folder is made when missing.

    Raises:
        OSError: If it cannot be written; nothing is left of it then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
