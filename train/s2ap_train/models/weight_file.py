"""Weights that a user brings: read from a file, without running code in it, and put into the user's network."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.classifier import Classifier
from s2ap_train.models.user_network import UserNetwork

__all__ = ["file_digest", "load_given", "load_weights"]

_NESTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
"""Keys under which training scripts store the weights beside other things."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What wrappers put in front of every name: DataParallel, torch.compile, and a module's own attribute."""
_SHOWN = 3
_OPTIONAL = "num_batches_tracked"


def load_given(model: Classifier, path: Path) -> tuple[str, ...]:
    """Put the weights of a file into a classifier, and see how its outputs become logits with them.

    Returns:
        What was done to the names and is done with the outputs, one sentence each.

    Raises:
        RecipeError: As `load_weights`.
    """
    if not isinstance(model, UserNetwork):
        return load_weights(model, path)
    notes = load_weights(model.network, path)
    model.read_outputs()
    return (*notes, *model.notes)


def load_weights(network: nn.Module, path: Path) -> tuple[str, ...]:
    """Put the weights of a file into a network.

    Args:
        network: The user's module; its parameters and buffers are replaced.
        path: A safetensors file, or what `torch.save` wrote of a state_dict, also under a key such as 'model' or
            'state_dict'. A name that begins with what a wrapper adds, such as 'module.', is taken without it.

    Returns:
        What was done to the names, one sentence each.

    Raises:
        RecipeError: If the file cannot be read without running its code, holds no weights, or they are not the
            network's.
    """
    tensors, notes = _read(path)
    expected = network.state_dict()
    tensors, stripped = _without_prefixes(tensors, expected)
    _check(tensors, expected, path, network)
    network.load_state_dict({name: tensors.get(name, value) for name, value in expected.items()})
    return (*notes, *stripped)


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        RecipeError: If it cannot be read.
    """
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
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
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RecipeError(
            f"weights {path} cannot be read without running code that is in the file ({first[:160]}); save the "
            "state_dict alone: torch.save(network.state_dict(), path), or a safetensors file"
        ) from error
    return loaded


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


def _without_prefixes(
    tensors: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors, less what stands before all of their names where the network has it not."""
    notes = []
    while tensors and not tensors.keys() & expected.keys():
        prefix = next((one for one in _PREFIXES if all(name.startswith(one) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        notes.append(f"the prefix {prefix!r} was taken off all names")
    return tensors, tuple(notes)


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
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise RecipeError(f"weights {path}: {name} holds values that are not finite; give another checkpoint")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
