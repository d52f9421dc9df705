"""Fingerprints: SHA-256 over everything that decides a result, so that a stored one is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel

if TYPE_CHECKING:
    from torch import nn

__all__ = ["fingerprint", "weights_digest"]


def fingerprint(settings: object) -> str:
    """SHA-256 over settings: JSON values, arrays, dataclasses, pydantic models, and tuples of them."""
    return hashlib.sha256(json.dumps(settings, default=_plain, sort_keys=True).encode()).hexdigest()


def weights_digest(networks: Iterable[nn.Module]) -> str:
    """SHA-256 over what the networks are and hold: their modules and settings, names, shapes and values of tensors."""
    import torch  # here, so that a process whose work needs no torch starts without it

    digest = hashlib.sha256()
    for network in networks:
        architecture = getattr(network, "architecture", None)
        digest.update(f"{network!r}\n{architecture() if callable(architecture) else ''}\n".encode())
        for name, value in network.state_dict().items():
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}\n".encode())
            digest.update(torch.flatten(value.detach().cpu()).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no fingerprint")
