"""Checkpoint folders: weights in safetensors, everything else in JSON; written whole or not at all, and never a pickle.

folder/
    checkpoint.json         {"format_version": 1, "weights_sha256": "...", "record": {...}}
    weights.safetensors
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError

FORMAT_VERSION = 1
WEIGHTS_FILE = "weights.safetensors"
RECORD_FILE = "checkpoint.json"
_KEYS = {"format_version", "weights_sha256", "record"}


def save_checkpoint(folder: Path, *, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a checkpoint folder, replacing one that is there.

    Both files are written to a folder beside the target and flushed before it is renamed, so a reader sees the old
    checkpoint or the new one. (Replacing takes two renames: if the machine stops between them, the old one is left
    beside, named `.<name>.*.old`.)

    Args:
        folder: Where; missing parents are made.
        tensors: Weights by name; any device and memory layout.
        record: Architecture, configuration, history, provenance: JSON values only. `weights_sha256` is added.

    Raises:
        RecipeError: If the record holds something that JSON does not, or the target is not a checkpoint folder.
    """
    weights = save_safetensors({name: t.detach().cpu().contiguous().clone() for name, t in sorted(tensors.items())})
    document = {
        "format_version": FORMAT_VERSION,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "record": {key: value for key, value in record.items() if key != "weights_sha256"},
    }
    try:
        text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"the record of checkpoint {folder} is not JSON: {error}; store numbers, strings and lists"
        ) from error
    if folder.exists() and not (folder / RECORD_FILE).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RecipeError(f"{folder} exists and is not a checkpoint; choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".new", dir=folder.parent))
    try:
        _write(beside / WEIGHTS_FILE, weights)
        _write(beside / RECORD_FILE, text.encode() + b"\n")
        beside.chmod(0o755)
        _replace(folder, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint folder: (tensors by name, record with `weights_sha256`).

    Raises:
        RecipeError: If a file is missing, cannot be read, carries another version or unknown keys, or the
            weights are not those that were saved.
    """
    document = _read_document(folder / RECORD_FILE)
    weights = _read(folder / WEIGHTS_FILE)
    found = hashlib.sha256(weights).hexdigest()
    if found != document["weights_sha256"]:
        raise RecipeError(
            f"{folder / WEIGHTS_FILE} has SHA-256 {found[:12]}..., {RECORD_FILE} expects "
            f"{document['weights_sha256'][:12]}...; "
            "the file is truncated or was changed: copy the folder again or train it again"
        )
    try:
        tensors: dict[str, Tensor] = load_safetensors(weights)
    except (
        safetensors.SafetensorError,
        KeyError,
        ValueError,
    ) as error:  # pragma: no cover  (a right hash of a wrong file)
        raise RecipeError(f"{folder / WEIGHTS_FILE} is not a safetensors file: {error}; train it again") from error
    return tensors, {**document["record"], "weights_sha256": found}


def restore(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a checkpoint into a model, strictly: every name and shape must agree.

    Raises:
        RecipeError: With the names that are missing or unknown, or the shapes that differ; the model is then unchanged.
    """
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise RecipeError(
            f"the checkpoint does not fit the {type(model).__name__}: missing {missing or 'nothing'}, "
            f"unknown {unknown or 'nothing'}; rebuild the model from the architecture in its record"
        )
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise RecipeError(
                f"{name} has shape {tuple(tensors[name].shape)} in the checkpoint, the {type(model).__name__} expects "
                f"{tuple(tensor.shape)}; rebuild the model from the architecture in its record"
            )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(folder: Path, beside: Path) -> None:
    if not folder.exists():
        beside.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    folder.rename(old / folder.name)
    beside.rename(folder)
    shutil.rmtree(old)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read ({error.strerror}); a checkpoint folder holds {RECORD_FILE} and {WEIGHTS_FILE}"
        ) from error


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(path))
    except ValueError as error:
        raise RecipeError(f"{path} is not JSON ({error}); copy the folder again or train it again") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise RecipeError(
            f"{path} carries format version {version!r}, this version reads {FORMAT_VERSION}; train it again"
        )
    if (
        document.keys() != _KEYS
        or not isinstance(document["record"], dict)
        or not isinstance(document["weights_sha256"], str)
    ):
        raise RecipeError(
            f"{path} holds the keys {sorted(document)}, expected exactly {sorted(_KEYS)}; "
            "it was not written by s2ap-defend"
        )
    content: dict[str, Any] = document
    return content
