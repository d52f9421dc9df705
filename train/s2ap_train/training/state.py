"""Everything that a training run carries from one epoch to the next, and its snapshot."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_train.compute import Compute
from s2ap_train.models.weight_average import WeightAverage
from s2ap_train.storage.checkpoint import restore
from s2ap_train.storage.snapshots import grouped, joined, momentum, restore_momentum
from s2ap_train.training.batches import apply_masks
from s2ap_train.training.collapse import CollapseWatch
from s2ap_train.training.config import TrainingConfig
from s2ap_train.training.epoch_choice import EpochChoice

MaskUpdate = Callable[[int, Mapping[str, nn.Parameter], MutableMapping[str, Tensor], torch.optim.Optimizer], bool]
"""Step from 0, parameters, masks that it may change, optimiser -> whether it changed a mask."""


class TrainingState:
    """State of `train_classifier`: network, optimiser, masks, choice of the epoch, and where it stands.

    A resumed run must be bit-identical to an unbroken one, so `restore` copies into tensors that exist: their memory
    layout decides in which order sums are taken.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        masks: Mapping[str, Tensor],
        *,
        seed: int,
        compute: Compute,
        choice: EpochChoice,
        watch: CollapseWatch,
    ) -> None:
        self.model, self.compute, self.choice, self.watch = model, compute, choice, watch
        self.generator = torch.Generator().manual_seed(seed)
        self.parameters = dict(model.named_parameters())
        self.trained = {name: p for name, p in self.parameters.items() if p.requires_grad}
        device = next(model.parameters()).device
        self.masks = {name: mask.to(device, copy=True) for name, mask in masks.items()}
        apply_masks(self.parameters, self.masks)
        self.optimiser = torch.optim.SGD(
            list(self.trained.values()), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.average = WeightAverage(model, config.average_decay) if config.average_decay else None
        self.best: dict[str, Tensor] | None = None  # state_dict of the chosen epoch
        self.best_masks: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []
        self.epoch, self.step = 0, 0  # the next ones
        self.collapse: str | None = None
        self.stopped_early = False

    @property
    def candidate(self) -> nn.Module:
        """The network that is validated: the moving average where there is one."""
        return self.model if self.average is None else self.average.model

    def keep(self) -> None:
        """Keep the candidate's present weights, and the masks, as the best."""
        self.best = copy.deepcopy(self.candidate.state_dict())
        self.best_masks = {name: mask.clone() for name, mask in self.masks.items()}

    def update_masks(self, update: MaskUpdate) -> None:
        """Let the masks be changed after a step, then apply them and forget the momentum of weights that they changed.

        A weight that comes back has the value that the update gave it, else 0.
        """
        before = dict(self.masks)
        copies = {name: mask.clone() for name, mask in before.items()}
        if not update(self.step, self.parameters, self.masks, self.optimiser):
            return
        for name, mask in before.items():
            changed = copies[name] != self.masks[name]
            self.masks[name] = mask.copy_(self.masks[name])
            momentum = self.optimiser.state[self.parameters[name]].get("momentum_buffer")
            if momentum is not None:
                momentum.masked_fill_(changed, 0.0)
        apply_masks(self.parameters, self.masks)
        if self.average is not None:
            apply_masks(dict(self.average.model.named_parameters()), self.masks)

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that `resume` needs."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "momentum": momentum(self.optimiser, self.trained),
            "mask": self.masks,
            "best": self.best or {},
            "best_mask": self.best_masks,
            "average": {} if self.average is None else self.average.model.state_dict(),
            "generator": {"state": self.generator.get_state()},
        }
        record = {
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history,
            "choice": self.choice.state(),
            "watch": self.watch.state(),
            "compute": self.compute.state(),
            "average_updates": None if self.average is None else self.average.updates,
            "collapse": self.collapse,
            "stopped_early": self.stopped_early,
        }
        return joined(groups), record

    def resume(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`.

        Raises:
            RecipeError: If it is that of another network.
        """
        groups = grouped(tensors)
        restore(self.model, groups["model"])
        restore_momentum(self.optimiser, self.trained, groups.get("momentum", {}))
        for name, saved in groups.get("mask", {}).items():
            self.masks[name].copy_(saved)
        if "best" in groups:
            self.keep()
            for kept, named in ((self.best, groups["best"]), (self.best_masks, groups.get("best_mask", {}))):
                for name, saved in named.items():
                    (kept or {})[name].copy_(saved)
        if self.average is not None:
            restore(self.average.model, groups["average"])
            self.average.updates = record["average_updates"]
        self.generator.set_state(groups["generator"]["state"])
        self.epoch, self.step, self.history = record["epoch"], record["step"], list(record["history"])
        self.choice.restore(record["choice"])
        self.watch.restore(record["watch"])
        self.compute.restore(record["compute"])
        self.collapse, self.stopped_early = record["collapse"], record["stopped_early"]
