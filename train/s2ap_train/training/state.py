"""What the training of a classifier carries from one epoch to the next, and what it shares with a mask search."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.weight_average import WeightAverage
from s2ap_train.storage.snapshots import momentum, restore_momentum
from s2ap_train.training.batches import Batch, apply_masks, batches, cosine, draw_batch
from s2ap_train.training.collapse import CollapseWatch
from s2ap_train.training.config import TrainingConfig
from s2ap_train.training.epoch_choice import EpochChoice
from s2ap_train.training.epochs import EpochState
from s2ap_train.training.run import Groups, Run

MaskUpdate = Callable[[int, Mapping[str, nn.Parameter], MutableMapping[str, Tensor], torch.optim.Optimizer], bool]
"""Step from 0, parameters, masks that it may change, optimiser -> whether it changed a mask."""


class JudgedState(EpochState):
    """State of a training by SGD whose epochs are judged: one is chosen, and a collapse ends it."""

    what: ClassVar[str] = ""
    """What an epoch is of, for messages."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, trained: Mapping[str, Tensor], watch: CollapseWatch, run: Run
    ) -> None:
        super().__init__(model, epochs=config.epochs, run=run)
        self.config, self.trained, self.watch = config, dict(trained), watch
        self.choice = EpochChoice(watch.size)
        self.optimiser = torch.optim.SGD(
            list(self.trained.values()), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.collapse: str | None = None

    @property
    def stopped_early(self) -> bool:
        """Whether patience ran out."""
        return self.epoch < self.epochs and self.choice.out_of_patience(self.config.patience)

    @property
    def finished(self) -> bool:
        """Whether there is no next epoch."""
        return super().finished or self.collapse is not None or self.stopped_early

    def draw_batches(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Batch, int]]:
        """This process's part of every batch of an epoch, and the size of the whole batch; sets the learning rate."""
        order = batches(len(images), self.config.batch_size, self.generator)
        for step, rows in enumerate(order):
            lr = cosine(self.config.lr, self.epoch + step / len(order), self.epochs)
            self.optimiser.param_groups[0]["lr"] = lr
            yield draw_batch(images, labels, rows, self.config, self.generator, self.compute), len(rows)

    def diverge(self, loss: object) -> None:
        """End with an epoch whose loss or weights are not finite.

        Raises:
            RecipeError: If no epoch before it was good.
        """
        if not self.watch.has_learned:
            raise RecipeError(
                f"the loss is {loss} in epoch {self.epoch} of {self.epochs}{self.what}, and no epoch before it was "
                f"good; lower lr (now {self.config.lr:g})"
            )
        self.collapse = f"epoch {self.epoch}{self.what}: the loss is {loss}"

    def judge(self, record: dict[str, float]) -> bool:
        """Add an epoch's record to the history; whether what the epoch ended with is the best so far."""
        had_learned, reason = self.watch.has_learned, self.watch.reason(record)
        if self.watch.has_learned and not had_learned:
            self.choice.forget()  # to say one class always is robust, but no network that learns should lose against it
        if reason is not None:
            self.collapse = f"epoch {self.epoch}{self.what}: {reason}"
        accepted = reason is None and "validation_accuracy" in record and self.choice.accepts(self.epoch, record)
        self.history.append(record)
        return accepted

    def snapshot(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """Tensors and JSON values that `resume` needs."""
        groups, record = super().snapshot()
        judged = {"choice": self.choice.state(), "watch": self.watch.state(), "collapse": self.collapse}
        return groups | {"momentum": momentum(self.optimiser, self.trained)}, record | judged

    def resume(self, groups: Groups, record: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`. Errors as in `EpochState.resume`."""
        super().resume(groups, record)
        restore_momentum(self.optimiser, self.trained, groups.get("momentum", {}))
        self.choice.restore(record["choice"])
        self.watch.restore(record["watch"])
        self.collapse = record["collapse"]


class TrainingState(JudgedState):
    """State of `train_classifier`: network, optimiser, masks, choice of the epoch, and where it stands."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, masks: Mapping[str, Tensor], watch: CollapseWatch, run: Run
    ) -> None:
        self.parameters = dict(model.named_parameters())
        device = next(model.parameters()).device
        self.masks = {name: mask.to(device, copy=True) for name, mask in masks.items()}
        apply_masks(self.parameters, self.masks)
        super().__init__(model, config, {n: p for n, p in self.parameters.items() if p.requires_grad}, watch, run)
        if config.average_decay:
            self.average = WeightAverage(model, config.average_decay)
        self.best: dict[str, Tensor] | None = None  # state_dict of the chosen epoch
        self.best_masks: dict[str, Tensor] = {}
        self.step = 0  # the next one

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

    def snapshot(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """Tensors and JSON values that `resume` needs."""
        groups, record = super().snapshot()
        groups |= {"mask": self.masks, "best": self.best or {}, "best_mask": self.best_masks}
        return groups, record | {"step": self.step}

    def resume(self, groups: Groups, record: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`. Errors as in `EpochState.resume`."""
        super().resume(groups, record)
        for name, saved in groups.get("mask", {}).items():
            self.masks[name].copy_(saved)
        if "best" in groups:
            self.keep()
            for kept, named in ((self.best, groups["best"]), (self.best_masks, groups.get("best_mask", {}))):
                for name, saved in named.items():
                    (kept or {})[name].copy_(saved)
        self.step = record["step"]
