"""What a sweep keeps between runs: the images that the attack found for each purifier, as JSON, written whole."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from s2ap_defend.model_file import replace_file
from s2ap_defend.types import Float32
from s2ap_train.workbench import fingerprint

__all__ = ["KeptAttacks", "weights_digest"]

_KEPT = TypeAdapter(dict[str, Any])


class KeptAttacks:
    """Attacked images by everything that they depend on.

    Args:
        folder: Where they are kept; None keeps nothing.
        key: What all of them depend on: networks, data and attack.
    """

    def __init__(self, folder: Path | None, key: object) -> None:
        self._folder = folder
        self._key = key

    def load(self, part: object, shape: tuple[int, ...]) -> tuple[Float32, float] | None:
        """Images of that shape and milliseconds that were kept for a part of the sweep; None: there are none."""
        if self._folder is None:
            return None
        path, key = self._place(self._folder, part)
        try:
            kept = _KEPT.validate_json(path.read_bytes())
            if kept["key"] != key:
                return None
            images = np.frombuffer(base64.b64decode(kept["images"], validate=True), dtype="<f4").reshape(shape)
            return images.astype(np.float32), float(kept["milliseconds"])
        except (OSError, ValidationError, KeyError, TypeError, ValueError):
            return None  # measured again

    def save(self, part: object, images: Float32, milliseconds: float) -> None:
        """Keep what was found for a part."""
        if self._folder is None:
            return
        path, key = self._place(self._folder, part)
        encoded = base64.b64encode(images.astype("<f4").tobytes()).decode()
        replace_file(path, _KEPT.dump_json({"key": key, "milliseconds": milliseconds, "images": encoded}))

    def _place(self, folder: Path, part: object) -> tuple[Path, str]:
        key = fingerprint((self._key, part))
        return folder / f"{key[:20]}.json", key


def weights_digest(networks: Iterable[nn.Module]) -> str:
    """SHA-256 over the names and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in network.state_dict().items():
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}\n".encode())
            digest.update(_little_endian(value))
    return digest.hexdigest()


def _little_endian(value: Tensor) -> bytes:
    return torch.flatten(value.detach().cpu()).contiguous().view(torch.uint8).numpy().tobytes()
