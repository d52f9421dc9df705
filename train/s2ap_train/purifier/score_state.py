"""Everything that the training of a score model carries from one epoch to the next, and its snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s2ap_train.models.weight_average import WeightAverage
from s2ap_train.purifier.unet import UNet
from s2ap_train.training import EpochState, Run
from s2ap_train.training.run import Groups

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what torch.optim.Adam keeps of every parameter


class ScoreState(EpochState):
    """State of `train_score_model`: network, moving average, Adam, learning rate, generator, and where it stands."""

    average: WeightAverage

    def __init__(self, net: UNet, *, epochs: int, steps: int, lr: float, average_decay: float, run: Run) -> None:
        """Begin.

        Args:
            net: The network, on its device.
            epochs: How many.
            steps: Optimiser steps of an epoch.
            lr: Learning rate of the first step; it falls on a cosine to zero.
            average_decay: Of the moving average of weights.
            run: The seed is of order and noise.
        """
        super().__init__(net, epochs=epochs, run=run)
        self.parameters = dict(net.named_parameters())
        self.average = WeightAverage(net, average_decay)
        self.optimiser = torch.optim.Adam(net.parameters(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, epochs * steps)

    def step(self, loss: Tensor) -> None:
        """One optimiser step down this process's part of the loss, the average of weights and the learning rate."""
        gradients = self.compute.gradients(loss, list(self.parameters.values()))
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimiser.step()
        self.schedule.step()
        self.average.update(self.model)

    def snapshot(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """Tensors and JSON values that `resume` needs, after one epoch or more."""
        groups, record = super().snapshot()
        for moment in _MOMENTS:
            groups[moment] = {name: self.optimiser.state[p][moment] for name, p in self.parameters.items()}
        return groups, record | {
            "lr": self.optimiser.param_groups[0]["lr"],
            "schedule": self.schedule.state_dict(),
        }

    def resume(self, groups: Groups, record: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`. Errors as in `EpochState.resume`."""
        super().resume(groups, record)
        for name, parameter in self.parameters.items():
            step, *moments = (groups[moment][name] for moment in _MOMENTS)
            kept = (torch.empty_like(parameter).copy_(moment).detach() for moment in moments)
            self.optimiser.state[parameter] = dict(zip(_MOMENTS, (step.clone(), *kept), strict=True))
        self.optimiser.param_groups[0]["lr"] = float(record["lr"])
        self.schedule.load_state_dict(dict(record["schedule"]))
