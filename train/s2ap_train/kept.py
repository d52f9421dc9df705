"""What attacks found, kept between runs: images with notes, as JSON, written whole."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from s2ap_defend.files import replace_file
from s2ap_defend.types import Float32
from s2ap_train.storage.fingerprint import fingerprint

__all__ = ["KeptAttacks", "weights_digest"]

_KEPT = TypeAdapter(dict[str, Any])


class KeptAttacks:
    """Attacked images by everything that they depend on.

    Args:
        folder: Where they are kept; None keeps them for this object alone.
        key: What all of them depend on: networks, data, attack, and a version of the code that attacks.
    """

    def __init__(self, folder: Path | None, key: object) -> None:
        self._folder = folder
        self._key = key
        self._here: dict[str, tuple[Float32, dict[str, Any]]] = {}

    def load(self, part: object, shape: tuple[int, ...]) -> tuple[Float32, dict[str, Any]] | None:
        """Images of that shape and what else was kept for a part of the work; None: there is nothing."""
        key = self._key_of(part)
        if self._folder is None:
            return self._here.get(key)
        try:
            kept = _KEPT.validate_json(self._path(self._folder, key).read_bytes())
            if kept["key"] != key:
                return None
            images = np.frombuffer(base64.b64decode(kept["images"], validate=True), dtype="<f4").reshape(shape)
            return images.astype(np.float32), dict(kept["notes"])
        except (OSError, ValidationError, AttributeError, KeyError, TypeError, ValueError):
            return None  # measured again

    def save(self, part: object, images: Float32, notes: Mapping[str, Any]) -> None:
        """Keep what was found for a part."""
        key = self._key_of(part)
        if self._folder is None:
            self._here[key] = images, dict(notes)
            return
        encoded = base64.b64encode(images.astype("<f4").tobytes()).decode()
        whole = {"key": key, "notes": dict(notes), "images": encoded}
        replace_file(self._path(self._folder, key), _KEPT.dump_json(whole))

    def _key_of(self, part: object) -> str:
        return fingerprint((self._key, part))

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / f"{key[:20]}.json"


def weights_digest(networks: Iterable[nn.Module]) -> str:
    """SHA-256 over what the networks are and hold: their modules and settings, names, shapes and values of tensors."""
    digest = hashlib.sha256()
    for network in networks:
        architecture = getattr(network, "architecture", None)
        digest.update(f"{network!r}\n{architecture() if callable(architecture) else ''}\n".encode())
        for name, value in network.state_dict().items():
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}\n".encode())
            digest.update(_little_endian(value))
    return digest.hexdigest()


def _little_endian(value: Tensor) -> bytes:
    return torch.flatten(value.detach().cpu()).contiguous().view(torch.uint8).numpy().tobytes()
