"""Snapshots of a running training, so that a killed run goes on where it was."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_train.storage.checkpoint import RECORD_FILE, load_checkpoint, save_checkpoint

_SLOTS = ("snapshot-0", "snapshot-1")
_log = logging.getLogger(__name__)


class Snapshots:
    """The latest state of one phase of training, in a folder of its own.

    The last two states are kept in turn: whenever the process dies, one of them is whole. A state is used again only
    under the same `settings`, a string that stands for everything that decides the result.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self._folder, self._settings = folder, settings
        self._latest: int | None = None  # number of the newest state that was saved or found

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and record of the newest whole state, on the CPU; None without one for these settings.

        A damaged state is logged as a warning and passed over.
        """
        self._remove_unfinished()
        states = [state for slot in _SLOTS if (state := self._read(self._folder / slot)) is not None]
        if not states:
            return None
        tensors, envelope = max(states, key=lambda state: int(state[1]["number"]))
        self._latest = int(envelope["number"])
        record: dict[str, Any] = envelope["state"]
        return tensors, record

    def save(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Keep this state; it is written whole or not at all.

        Raises:
            RecipeError: If the folder cannot be written, or the record holds what JSON does not.
        """
        if self._latest is None:
            self.load()
        number = 0 if self._latest is None else self._latest + 1
        envelope = {"settings": self._settings, "number": number, "state": dict(record)}
        save_checkpoint(self._folder / _SLOTS[number % len(_SLOTS)], tensors=tensors, record=envelope)
        self._latest = number

    def child(self, name: str) -> Snapshots:
        """The snapshots of one phase within this one, under the same settings."""
        return Snapshots(self._folder / name, self._settings)

    def clear(self) -> None:
        """Remove the states and those of all children: the training is done."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._latest = None

    def _read(self, slot: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not (slot / RECORD_FILE).exists():
            return None
        try:
            tensors, envelope = load_checkpoint(slot)
        except RecipeError as error:
            _log.warning("a snapshot cannot be used: %s", error)
            return None
        return (tensors, envelope) if envelope.get("settings") == self._settings else None

    def _remove_unfinished(self) -> None:
        """Remove what a killed process left half written; only one process saves, so nobody is writing it now."""
        for slot in _SLOTS:
            for left in self._folder.glob(f".{slot}.*"):
                shutil.rmtree(left, ignore_errors=True)


def joined(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of several groups under one roof, named group.name."""
    return {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}


def grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What `joined` put together, by group; groups without a tensor are not there."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, name = key.split(".", 1)
        groups.setdefault(group, {})[name] = tensor
    return groups


def momentum(optimiser: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Momentum of SGD by name, of the tensors that have one."""
    buffers = {name: optimiser.state[tensor].get("momentum_buffer") for name, tensor in named.items()}
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}


def restore_momentum(
    optimiser: torch.optim.Optimizer, named: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> None:
    """Give tensors the momentum that was saved, in their own memory layout, which decides how sums round."""
    for name, buffer in saved.items():
        copied = torch.empty_like(named[name]).copy_(buffer).detach()
        optimiser.state[named[name]]["momentum_buffer"] = copied
