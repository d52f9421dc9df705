"""The context of a training: its seed, where it computes, where its state is kept, and who watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from s2ap_train.compute import Compute
from s2ap_train.storage.snapshots import Snapshots, grouped, joined
from s2ap_train.storage.stopwatch import OnEpoch

M = TypeVar("M", bound=nn.Module)
Groups = Mapping[str, Mapping[str, Tensor]]
"""Tensors of a snapshot by group and name."""


class Resumable(Protocol):
    """A state that a run saves, and goes on from."""

    history: list[dict[str, float]]
    """A record per epoch."""

    def resume(self, groups: Groups, record: Mapping[str, Any]) -> None:
        """Go on from the tensors and JSON values of a snapshot."""


@dataclass(frozen=True)
class Run:
    """The context of a training: all that it is given but data and hyper-parameters.

    Attributes:
        seed: Of everything random; it decides the weights on one machine.
        compute: Device, precision and the other processes; None = this process, on the model's device.
        snapshots: Where the state is kept after each epoch; a training goes on from the state that is there, to the
            very weights of an unbroken one. None keeps none.
        on_epoch: Called after each epoch with its number and record, by the first process; a resumed training calls it
            for the epochs of the snapshot as well.
    """

    seed: int
    compute: Compute | None = None
    snapshots: Snapshots | None = None
    on_epoch: OnEpoch | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes snapshots and reports."""
        return self.compute is None or self.compute.is_main

    def compute_for(self, model: nn.Module) -> Compute:
        """Where this model is trained."""
        return Compute(next(model.parameters()).device) if self.compute is None else self.compute

    def place(self, model: M) -> M:
        """The model itself, moved to where it is trained."""
        return self.compute_for(model).place(model)

    def phase(self, name: str, *, seed: int | None = None) -> Run:
        """The run of one phase of this one: with snapshots of its own and, if it is given, another seed."""
        snapshots = None if self.snapshots is None else self.snapshots.child(name)
        return replace(self, seed=self.seed if seed is None else seed, snapshots=snapshots)

    def extending(self, extend: Callable[[int, Mapping[str, float]], Mapping[str, float]], *, first: int = 0) -> Run:
        """This run, reporting `extend(epoch, record)` for a record and `first + epoch` for an epoch."""
        return replace(self, on_epoch=lambda epoch, record: self.report(first + epoch, extend(epoch, record)))

    def report(self, epoch: int, record: Mapping[str, float]) -> None:
        """Call `on_epoch` in the first process."""
        if self.on_epoch is not None and self.is_main:
            self.on_epoch(epoch, record)

    def save(self, groups: Groups, record: Mapping[str, Any]) -> None:
        """Keep these tensors and JSON values as the newest state; only the first process does."""
        if self.snapshots is not None and self.is_main:
            self.snapshots.save(joined(groups), record)

    def load(self) -> tuple[Groups, Mapping[str, Any]] | None:
        """The newest state that was saved; None without one."""
        saved = None if self.snapshots is None else self.snapshots.load()
        return None if saved is None else (grouped(saved[0]), saved[1])

    def resume(self, state: Resumable) -> bool:
        """Let a state go on from the newest snapshot, if there is one, and report its epochs; whether there was one."""
        if (saved := self.load()) is None:
            return False
        state.resume(*saved)
        for epoch, record in enumerate(state.history):
            self.report(epoch, record)
        return True

    def clear(self) -> None:
        """Remove the snapshots, those of phases included: the training is done. Only the first process does."""
        if self.snapshots is not None and self.is_main:
            self.snapshots.clear()
