"""Everything that the training of a score model carries from one epoch to the next, and its snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s2ap_train.compute import Compute
from s2ap_train.models.weight_average import WeightAverage
from s2ap_train.purifier.unet import UNet
from s2ap_train.storage.checkpoint import restore
from s2ap_train.storage.snapshots import grouped, joined

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what torch.optim.Adam keeps of every parameter


class ScoreState:
    """State of `train_score_model`: network, moving average, Adam, learning rate, generator, and where it stands.

    A resumed run must be bit-identical to an unbroken one, so `resume` copies into tensors of the parameters' memory
    layout.
    """

    def __init__(self, net: UNet, *, lr: float, steps: int, average_decay: float, seed: int, compute: Compute) -> None:
        """Begin.

        Args:
            net: The network, on its device.
            lr: Learning rate of the first step; it falls on a cosine to zero.
            steps: Optimiser steps of the whole training.
            average_decay: Of the moving average of weights.
            seed: Of order and noise.
            compute: Device, precision and the other processes.
        """
        self.net, self.compute = net, compute
        self.parameters = dict(net.named_parameters())
        self.average = WeightAverage(net, average_decay)
        self.generator = torch.Generator().manual_seed(seed)
        self.optimiser = torch.optim.Adam(net.parameters(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, steps)
        self.history: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """Number of the next epoch."""
        return len(self.history)

    def step(self, loss: Tensor) -> None:
        """One optimiser step down this process's part of the loss, the average of weights and the learning rate."""
        gradients = self.compute.gradients(loss, list(self.parameters.values()))
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimiser.step()
        self.schedule.step()
        self.average.update(self.net)

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that `resume` needs, after one epoch or more."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": self.net.state_dict(),
            "average": self.average.model.state_dict(),
            "generator": {"state": self.generator.get_state()},
        }
        for moment in _MOMENTS:
            groups[moment] = {name: self.optimiser.state[p][moment] for name, p in self.parameters.items()}
        record = {
            "history": self.history,
            "average_updates": self.average.updates,
            "lr": self.optimiser.param_groups[0]["lr"],
            "schedule": self.schedule.state_dict(),
            "compute": self.compute.state(),
        }
        return joined(groups), record

    def resume(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`.

        Raises:
            RecipeError: If it is that of another network.
        """
        groups = grouped(tensors)
        restore(self.net, groups["model"])
        restore(self.average.model, groups["average"])
        self.average.updates = int(record["average_updates"])
        self.generator.set_state(groups["generator"]["state"])
        for name, parameter in self.parameters.items():
            step, *moments = (groups[moment][name] for moment in _MOMENTS)
            kept = (torch.empty_like(parameter).copy_(moment).detach() for moment in moments)
            self.optimiser.state[parameter] = dict(zip(_MOMENTS, (step.clone(), *kept), strict=True))
        self.optimiser.param_groups[0]["lr"] = float(record["lr"])
        self.schedule.load_state_dict(dict(record["schedule"]))
        self.compute.restore(record["compute"])
        self.history = list(record["history"])
