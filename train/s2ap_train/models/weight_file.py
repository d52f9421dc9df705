"""Weights that a user brings: read from a file, without running code in it, and put into the user's network."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.classifier import Classifier
from s2ap_train.models.normalisation import Normalisation
from s2ap_train.models.user_network import UserNetwork
from s2ap_train.models.weight_names import Pixels, matched

__all__ = ["file_digest", "load_given", "load_weights"]

_NESTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
"""Keys under which training scripts store the weights among other things."""
_SCALAR = np.float64().__reduce__()[0]  # how numpy's numbers are read back
_HARMLESS: tuple[Any, ...] = (
    *(argparse.Namespace, np.dtype, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")),
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
)
"""What training scripts store besides the weights: settings and numbers, none of which runs code."""
_TORCH_SCRIPT = "are a TorchScript archive, which holds code"
_SHOWN = 3
_OPTIONAL = "num_batches_tracked"


def load_given(model: Classifier, path: Path) -> tuple[str, ...]:
    """Put the weights of a file into a classifier, and see how it is fed and how its outputs become logits with them.

    Returns:
        What was done to the names and is done with pixels and outputs, one sentence each.

    Raises:
        RecipeError: As `load_weights`, or if the file holds another normalisation than the one that was named.
    """
    if not isinstance(model, UserNetwork):
        return load_weights(model, path)
    notes, pixels = _load(model.network, path)
    if pixels is not None:
        notes = (*notes, _feed(model, pixels, path))
    model.read_outputs()
    return (*notes, *model.notes)


def load_weights(network: nn.Module, path: Path) -> tuple[str, ...]:
    """Put the weights of a file into a network.

    Args:
        network: A module; its parameters and buffers are replaced.
        path: A safetensors file, or what `torch.save` wrote of a state_dict, also under a key such as 'model' or
            'state_dict', next to numbers and settings. `weight_names.matched` says which names fit.

    Returns:
        What was done to the names, one sentence each.

    Raises:
        RecipeError: If the file cannot be read without running its code, holds no weights, they are not the network's,
            or they hold a normalisation besides.
    """
    notes, pixels = _load(network, path)
    if pixels is not None:
        raise RecipeError(
            f"weights {path} hold a normalisation, mean {list(pixels[0])} and std {list(pixels[1])}, which a "
            f"{type(network).__name__} has not; name their network as package.module:function"
        )
    return notes


def _load(network: nn.Module, path: Path) -> tuple[tuple[str, ...], Pixels | None]:
    """Put the weights of a file into a network: (what was done to the names, the normalisation next to them)."""
    tensors, nests = _read(path)
    found, expected = matched(tensors, network), network.state_dict()
    _check(found.tensors, expected, path, network)
    network.load_state_dict({name: found.tensors.get(name, value) for name, value in expected.items()})
    return (*nests, *found.notes), found.pixels


def _feed(model: UserNetwork, pixels: Pixels, path: Path) -> str:
    """Normalise as the weights' file says, and say so.

    Raises:
        RecipeError: If something else was named.
    """
    normalisation, named = Normalisation(model.in_channels, *pixels), model.normalisation
    if named.arguments() and not (
        torch.allclose(named.shift, normalisation.shift, atol=1e-3)
        and torch.allclose(named.scale, normalisation.scale, atol=1e-3)
    ):
        raise RecipeError(
            f"weights {path} hold a normalisation, mean {_short(pixels[0])} and std {_short(pixels[1])}, but "
            f"{named.arguments()} was named; leave mean and std out"
        )
    model.normalisation = normalisation
    return f"pixels are normalised as the file of the weights says: mean {_short(pixels[0])}, std {_short(pixels[1])}"


def _short(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        RecipeError: If it cannot be read.
    """
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe is waited for without end
        raise RecipeError(f"weights {path} cannot be read (it is a folder, pipe or device); name a file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(f"weights {path} cannot be read ({error.strerror or error}); name a file") from error


def _read(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    content = _bytes(path)
    if path.suffix.lower() == ".safetensors":
        try:
            return load_safetensors(content), ()
        except (SafetensorError, ValueError) as error:
            raise RecipeError(f"weights {path} are no safetensors file ({error}); save them again") from error
    return _state_dict(_unpickled(path), path)


def _unpickled(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript archives, which end in the message below
            with torch.serialization.safe_globals([*_HARMLESS]):
                loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle raise anything
        why = _unread(path, error)
        cure = (
            f"take its weights out: torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')"
            if why == _TORCH_SCRIPT
            else "save the state_dict alone: torch.save(network.state_dict(), path), or a safetensors file"
        )
        raise RecipeError(f"weights {path} {why}; {cure}") from error
    return loaded


def _unread(path: Path, error: Exception) -> str:
    """Why weights were not read: what the file is, or what is in it."""
    names = []
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        return _TORCH_SCRIPT
    if "data.pkl" not in names and not _bytes(path).startswith(pickle.PROTO):
        return "are no file that torch.save wrote"
    code = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch's own advice is to trust the file
    if code is None:
        return "cannot be read: the file is damaged, or was not written by torch.save"
    return f"cannot be read without running code that is in the file (it holds a {code[1]})"


def _state_dict(loaded: object, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights in what was loaded, alone or under one of the usual keys, and what was done to find them."""
    notes = []
    while isinstance(loaded, Mapping) and not _is_state_dict(loaded):
        key = next((key for key in _NESTS if isinstance(loaded.get(key), Mapping)), None)
        if key is None:
            found = ", ".join(str(name) for name in list(loaded)[:8])
            raise RecipeError(
                f"weights {path} hold no state_dict, but {found or 'nothing'}; save the state_dict of the network, "
                f"alone or under a key such as {_NESTS[0]!r}"
            )
        loaded = loaded[key]
        notes.append(f"the weights are under the key {key!r}")
    if not isinstance(loaded, Mapping):
        raise RecipeError(f"weights {path} hold a {type(loaded).__name__}, expected a state_dict of tensors by name")
    return {str(name): value for name, value in loaded.items()}, tuple(notes)


def _is_state_dict(loaded: Mapping[object, object]) -> bool:
    return bool(loaded) and all(isinstance(value, Tensor) for value in loaded.values())


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, network: nn.Module) -> None:
    """Refuse weights that are not the network's.

    Raises:
        RecipeError: With the first names that are missing, not known or of another shape.
    """
    what = type(network).__name__
    missing = [name for name in expected if name not in tensors and not name.endswith(_OPTIONAL)]
    unknown = [name for name in tensors if name not in expected]
    if missing or unknown:
        parts = [f"lack {_some(missing)}"] if missing else []
        parts += [f"hold {_some(unknown)}, which it has not"] if unknown else []
        raise RecipeError(
            f"weights {path} are not those of the network, a {what}: they {' and '.join(parts)}; give the function "
            "that made the network these weights were trained in, with the same arguments"
        )
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise RecipeError(
                f"weights {path}: {name} has shape {list(value.shape)}, the network's has "
                f"{list(expected[name].shape)}; where it is the last layer, the number of classes differs"
            )
        if value.is_floating_point() != expected[name].is_floating_point() or not _dense(value):
            raise RecipeError(
                f"weights {path}: {name} is {_form(value)}, the network's is {_form(expected[name])}; save the "
                "weights as the network computes with them"
            )
        if not bool(torch.isfinite(value).all()):
            raise RecipeError(f"weights {path}: {name} holds values that are not finite; give another checkpoint")


def _dense(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_quantized and not value.is_complex() and not value.is_meta


def _form(value: Tensor) -> str:
    """Of which kind the numbers of a tensor are, such as 'a sparse_coo tensor of float32'."""
    layout = "" if value.layout == torch.strided else f"{value.layout} ".removeprefix("torch.")
    return f"a {'quantised ' if value.is_quantized else ''}{layout}tensor of {value.dtype}".replace("torch.", "")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
