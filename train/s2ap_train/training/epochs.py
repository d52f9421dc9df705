"""The one loop over epochs, for weights, masks and score models: it goes on where it was killed, saves and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_train.models.weight_average import WeightAverage
from s2ap_train.storage.checkpoint import restore
from s2ap_train.training.batches import global_random_state
from s2ap_train.training.run import Groups, Run


class EpochState:
    """What every training carries from one epoch to the next, and its snapshot; trainings extend both.

    A resumed training must be bit-identical to an unbroken one, so `resume` copies into tensors that exist, or into new
    ones of the parameters' memory layout: it decides in which order sums are taken.
    """

    average: WeightAverage | None = None
    """The moving average of the weights, where a training has one."""

    def __init__(self, model: nn.Module, *, epochs: int, run: Run) -> None:
        """Begin.

        Args:
            model: The network, where it is trained.
            epochs: How many.
            run: The seed of order, augmentation and attack, and where it computes.
        """
        self.model, self.epochs, self.compute = model, epochs, run.compute_for(model)
        self.generator = torch.Generator().manual_seed(run.seed)
        self.history: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """Number of the next epoch."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """Whether there is no next epoch."""
        return self.epoch >= self.epochs

    def snapshot(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """Tensors by group and name, and JSON values, that `resume` needs."""
        groups: dict[str, Mapping[str, Tensor]] = {"model": self.model.state_dict()}
        groups["generator"] = {"state": self.generator.get_state()}
        record: dict[str, Any] = {"history": self.history, "compute": self.compute.state()}
        if self.average is not None:
            groups["average"], record["average_updates"] = self.average.model.state_dict(), self.average.updates
        return groups, record

    def resume(self, groups: Groups, record: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`.

        Raises:
            RecipeError: If it is that of another network.
        """
        restore(self.model, groups["model"])
        if self.average is not None:
            restore(self.average.model, groups["average"])
            self.average.updates = record["average_updates"]
        self.generator.set_state(groups["generator"]["state"])
        self.history = list(record["history"])
        self.compute.restore(record["compute"])


def run_epochs(state: EpochState, run: Run, epoch: Callable[[], None], begin: Callable[[], None] | None = None) -> None:
    """Go on from the snapshot of the run or begin, and do epochs until the state is finished.

    Args:
        state: What epochs change.
        run: Of the training; every epoch is saved before it is reported.
        epoch: One epoch: it adds a record to the history, or says by another way that the state is finished.
        begin: Called first where there is no snapshot.
    """
    if not run.resume(state) and begin is not None:
        begin()
    while not state.finished:
        number = state.epoch
        with global_random_state(run.seed, number):
            epoch()
        run.save(*state.snapshot())
        if state.epoch > number:
            run.report(number, state.history[-1])
