"""Checkpoint folders: tensors in safetensors, everything else in JSON; written whole or not at all, and never a pickle.

folder/
    checkpoint.json         {"format_version": 3, "sha256": {"weights.safetensors": "...", ...}, "record": {...},
                            "record_sha256": "..."}
    weights.safetensors     and whatever else was stored; every file is verified when it is read
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

FORMAT_VERSION = 3
WEIGHTS_FILE = "weights.safetensors"
RECORD_FILE = "checkpoint.json"
_KEYS = {"format_version", "sha256", "record", "record_sha256"}


def save_checkpoint(folder: Path, *, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a checkpoint folder of one set of tensors, replacing one that is there.

    Args:
        folder: Where; missing parents are made.
        tensors: Weights by name; any device and memory layout.
        record: Architecture, configuration, history, provenance: JSON values only; reading adds `weights_sha256`.

    Raises:
        RecipeError: If the record holds something that JSON does not, or the target is not a checkpoint folder.
    """
    write_folder(folder, {WEIGHTS_FILE: tensor_bytes(tensors)}, record)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint folder: (tensors by name, record with `weights_sha256`).

    Raises:
        RecipeError: If a file is missing, cannot be read, carries another version or unknown keys, or is not what was
            saved.
    """
    files, record = read_folder(folder)
    tensors = tensors_of(folder, WEIGHTS_FILE, files)
    return tensors, {**record, "weights_sha256": hashlib.sha256(files[WEIGHTS_FILE]).hexdigest()}


def write_folder(folder: Path, files: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
    """Write files and their record as one checkpoint folder, replacing one that is there.

    All is written to a folder next to the target and flushed before it is renamed, so a reader sees the old checkpoint
    or the new one. (Replacing takes two renames: if the machine stops between them, the old one is left next to, named
    `.<name>.*.old`.)

    Raises:
        RecipeError: As `save_checkpoint`, or if the folder cannot be written.
    """
    document = {
        "format_version": FORMAT_VERSION,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "record": (stored := {key: value for key, value in record.items() if key != "weights_sha256"}),
        "record_sha256": _record_hash(stored, folder),
    }
    check_replaceable(folder)
    files = {**files, RECORD_FILE: json_bytes(document, f"the record of checkpoint {folder}")}
    unfinished = _unfinished(folder)
    try:
        for name, content in files.items():
            _write(unfinished / name, content)
        unfinished.chmod(0o755)
        _replace(folder, unfinished)
    except OSError as error:
        raise RecipeError(
            f"checkpoint {folder} cannot be written ({error.strerror}); make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_folder(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Read a checkpoint folder: (verified content of every stored file by name, record).

    Raises:
        RecipeError: As `load_checkpoint`.
    """
    document = _read_document(folder / RECORD_FILE)
    if document["record_sha256"] != _record_hash(document["record"], folder):
        raise RecipeError(f"the record in {folder / RECORD_FILE} was changed; copy the folder again or train it again")
    files = {}
    for name, expected in document["sha256"].items():
        files[name] = _read(folder / name)
        found = hashlib.sha256(files[name]).hexdigest()
        if found != expected:
            raise RecipeError(
                f"{folder / name} has SHA-256 {found[:12]}..., {RECORD_FILE} expects {expected[:12]}...; "
                "the file is truncated or was changed: copy the folder again or train it again"
            )
    return files, document["record"]


def check_replaceable(folder: Path) -> None:
    """Refuse a target that holds something else than a checkpoint.

    Raises:
        RecipeError: If the folder exists, is not empty and is not a checkpoint, or is a file, or nothing can be written
            next to it.
    """
    try:
        taken = folder.exists() and not (folder / RECORD_FILE).is_file() and not _is_empty(folder)
    except OSError as error:
        raise RecipeError(f"{folder} cannot be read ({error.strerror}); choose another folder or remove it") from error
    if taken:
        raise RecipeError(f"{folder} exists and is not a checkpoint; choose another folder or remove it")
    _unfinished(folder).rmdir()


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file, names in order."""
    return save_safetensors({name: t.detach().cpu().contiguous().clone() for name, t in sorted(tensors.items())})


def tensors_of(folder: Path, name: str, files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """The tensors of one file of a folder that was read.

    Raises:
        RecipeError: If the folder has no such file, or it is not a safetensors file.
    """
    if name not in files:
        raise RecipeError(f"{folder} has no {name}, only {', '.join(sorted(files)) or 'nothing'}; train it again")
    try:
        tensors: dict[str, Tensor] = load_safetensors(files[name])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:  # pragma: no cover  (right hash, wrong file)
        raise RecipeError(f"{folder / name} is not a safetensors file: {error}; train it again") from error
    return tensors


def json_bytes(document: object, what: str) -> bytes:
    """A document as indented JSON.

    Raises:
        RecipeError: If it holds something that JSON does not; `what` names it.
    """
    try:
        return json.dumps(document, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{what} is not JSON: {error}; store numbers, strings and lists") from error


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


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _record_hash(record: object, folder: Path) -> str:
    return hashlib.sha256(json_bytes(record, f"the record of checkpoint {folder}")).hexdigest()


def _unfinished(folder: Path) -> Path:
    """A new empty folder next to the target, which a rename can move there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".new", dir=folder.parent))
    except OSError as error:
        raise RecipeError(f"checkpoint {folder} cannot be written ({error.strerror}); choose another folder") from error


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(folder: Path, unfinished: Path) -> None:
    if not folder.exists():
        unfinished.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    folder.rename(old / folder.name)
    unfinished.rename(folder)
    shutil.rmtree(old)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read ({error.strerror}); "
            f"a checkpoint folder holds {RECORD_FILE} and the files that it names"
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
    if document.keys() != _KEYS or not isinstance(document["record"], dict) or not _are_hashes(document["sha256"]):
        raise RecipeError(
            f"{path} holds the keys {sorted(document)}, expected exactly {sorted(_KEYS)}; "
            "it was not written by s2ap-defend"
        )
    content: dict[str, Any] = document
    return content


def _are_hashes(value: object) -> bool:
    """Whether this maps bare file names to hashes; a name with a folder in it could lead anywhere."""
    return isinstance(value, dict) and all(
        isinstance(hashed, str) and name == Path(name).name and name not in {"", "..", RECORD_FILE}
        for name, hashed in value.items()
    )
