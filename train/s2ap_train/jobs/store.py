"""What jobs found, stored by everything that it depends on: one safetensors file an entry, written whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_safetensors

from s2ap_defend.errors import RecipeError
from s2ap_defend.files import replace_file
from s2ap_defend.types import Float32
from s2ap_train.storage.fingerprint import fingerprint

__all__ = ["Found", "Store"]

_IMAGES, _STORE = "images", "store"


@dataclass(frozen=True)
class Found:
    """What a job found.

    Attributes:
        images: float32 [N, C, H, W] in [0, 1].
        notes: JSON values, such as settings and counts.
        arrays: Further arrays by name, none called 'images'.
    """

    images: Float32
    notes: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def sha256(self) -> str:
        """Over images and arrays: their names, types, shapes and values; notes, which hold times, are not in it."""
        digest = hashlib.sha256()
        for name, array in sorted({_IMAGES: self.images, **self.arrays}.items()):
            digest.update(f"{name}:{array.dtype.str}:{array.shape}\n".encode() + array.tobytes())
        return digest.hexdigest()


class Store:
    """What jobs found, by everything that decides it.

    A file holds the arrays, with the notes as JSON and a SHA-256 over its key, notes and arrays in its metadata. One
    that is damaged, or that another key wrote, counts as missing.

    Args:
        folder: Where the files are; None remembers what is saved in this object alone.
        key: What all entries depend on: networks, data, and a version of the code that finds them.
    """

    def __init__(self, folder: Path | None, key: object) -> None:
        self._folder = folder
        self._key = key
        self._remembered: dict[str, Found] = {}

    def load(self, decides: object) -> Found | None:
        """What was found under the store's key and `decides`; None: nothing was, or its file is damaged."""
        key = fingerprint((self._key, decides))
        if self._folder is None:
            return self._remembered.get(key)
        try:
            with safe_open(_path(self._folder, key), "numpy") as file:
                metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = Found(arrays.pop(_IMAGES), {}, arrays)
            if metadata["sha256"] != _digest(key, metadata["notes"], found):
                return None
            return replace(found, notes=json.loads(metadata["notes"]))
        except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError):
            return None

    def count(self, images: int) -> int:
        """Entries under the store's key that hold so many images; what they found is not read.

        An entry of an older version, which does not say whose it is, counts as well.
        """
        if self._folder is None or not self._folder.is_dir():
            return 0
        mine = fingerprint(self._key)
        return sum(_header(path) in ((mine, images), (None, images)) for path in self._folder.glob("*.safetensors"))

    def save(self, decides: object, found: Found) -> None:
        """Store what was found.

        Raises:
            RecipeError: If the file cannot be written.
        """
        key = fingerprint((self._key, decides))
        if self._folder is None:
            self._remembered[key] = found
            return
        notes = json.dumps(dict(found.notes))
        arrays = {name: np.asarray(one, order="C") for name, one in {_IMAGES: found.images, **found.arrays}.items()}
        metadata = {"notes": notes, "sha256": _digest(key, notes, found), _STORE: fingerprint(self._key)}
        path = _path(self._folder, key)
        try:
            replace_file(path, save_safetensors(arrays, metadata))
        except OSError as error:
            raise RecipeError(
                f"{path} cannot be written ({error.strerror or error}); make room, or name another folder"
            ) from error


def _header(path: Path) -> tuple[str | None, int] | None:
    """(the store's key, number of images) of an entry; None: it is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            return file.metadata().get(_STORE), int(file.get_slice(_IMAGES).get_shape()[0])
    except (OSError, SafetensorError, AttributeError, ValueError):
        return None


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key[:20]}.safetensors"


def _digest(key: str, notes: str, found: Found) -> str:
    return hashlib.sha256(f"{key}\n{notes}\n{found.sha256()}".encode()).hexdigest()
