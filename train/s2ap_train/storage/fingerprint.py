"""One number for everything that decides a result."""

import hashlib
import json
from dataclasses import fields, is_dataclass

from pydantic import BaseModel

__all__ = ["fingerprint"]


def fingerprint(settings: object) -> str:
    """SHA-256 over settings: JSON values, dataclasses, pydantic models, and tuples of them."""
    return hashlib.sha256(json.dumps(settings, default=_plain, sort_keys=True).encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    raise TypeError(f"{type(value).__name__} has no fingerprint")
