"""FlyingBird's training: masks that move, and the signals by which FlyingBird+ lets their sparsity follow."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from s2ap_train.attacks.accuracy import Array, on_device
from s2ap_train.models.modes import batch_norm_statistics_frozen, evaluation_mode
from s2ap_train.pruning.flying_bird import FlyingBird
from s2ap_train.pruning.masks import hamming
from s2ap_train.pruning.masks import sparsity as masks_sparsity
from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.topology import drop_and_regrow, layer_counts, random_masks
from s2ap_train.training import Run, adversarial_examples, robust_loss, train_classifier

_MEASURING_SEED = 2024  # of the attack, and of the images, that the signals are measured with


def prune_flying_bird(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: FlyingBird,
    *,
    run: Run,
) -> PrunedModel:
    """Train a sparse network from its first weights on; the given network itself is not changed.

    It starts under a random mask. At every update each layer that is not dense drops its smallest weights and regrows
    as many elsewhere, from 0 and without momentum, so that the sparsity holds exactly. With `plus` the numbers may
    differ (`AdaptiveSparsity`). Scores are the final weights. Records carry also sparsity and hamming (the mask at the
    end of the epoch against that at its start) and, with `plus`, robust_gap and validation_robust_loss.

    Args:
        model: The untrained network.
        images: Training images, float32 [N, C, H, W] in [0, 1].
        labels: Their labels, int64 [N].
        validation: Images and labels that choose the epoch; never the test set.
        config: Hyper-parameters.
        run: The seed is of the first mask, the regrowth, the order, the augmentation and the attack.

    Raises:
        RecipeError: As `train_classifier`, or if no update would come.
    """
    network = copy.deepcopy(model)
    shapes = {name: tuple(weight.shape) for name, weight in prunable_weights(network).items()}
    counts = layer_counts(shapes, config.sparsity, config.layer_ratios)
    masks = random_masks(shapes, counts, torch.Generator().manual_seed(run.seed))
    topology = MovingTopology(network, (images, labels), validation, config, run.phase("topology"))

    def with_topology(epoch: int, record: Mapping[str, float]) -> dict[str, float]:
        return {**record, **topology.records[epoch]}

    training = train_classifier(
        network,
        images,
        labels,
        validation,
        config.training,
        run=run.extending(with_topology),
        masks=masks,
        mask_update=topology,
    )
    history = tuple(with_topology(epoch, record) for epoch, record in enumerate(training.history))
    scores = {name: weight.detach().clone() for name, weight in prunable_weights(network).items()}
    return PrunedModel(network, masks, scores, history, training.best_epoch, collapse=training.collapse)


def rising(values: Sequence[float], window: int) -> float:
    """Fraction of the last `window` steps from one value to the next that go up; 0 of fewer than two values."""
    recent = values[-window - 1 :]
    return sum(b > a for a, b in pairwise(recent)) / max(1, len(recent) - 1)


class MovingTopology:
    """Moves masks after optimiser steps; all that is random in an update depends on seed and step alone."""

    def __init__(
        self,
        model: nn.Module,
        training_set: tuple[Array, Array],
        validation_set: tuple[Array, Array],
        config: FlyingBird,
        run: Run,
    ) -> None:
        self._model, self._config, self._run, self._compute = model, config, run, run.compute_for(model)
        self._training_set, self._validation_set = training_set, validation_set
        self._steps_in_epoch = math.ceil(len(training_set[0]) / config.training.batch_size)
        self._steps = self._steps_in_epoch * config.training.epochs
        self._every = config.update_interval(self._steps)
        self._before: dict[str, Tensor] = {}  # masks at the start of the epoch
        saved = run.load()
        self.records: list[dict[str, float]] = [] if saved is None else list(saved[1]["records"])

    def __call__(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        masks: MutableMapping[str, Tensor],
        optimiser: torch.optim.Optimizer,
    ) -> bool:
        """Update the masks if this step, from 0, ends an interval, and measure if it ends an epoch; whether it did."""
        epoch, step_in_epoch = divmod(step, self._steps_in_epoch)
        if step_in_epoch == 0:
            self._before = {name: mask.clone() for name, mask in masks.items()}
            self.records = self.records[:epoch]  # a killed run may have measured an epoch that is now repeated
        changed = self._update(step + 1, parameters, masks, optimiser)
        if step_in_epoch == self._steps_in_epoch - 1:
            self.records.append(self._measured(masks))
            self._run.save({}, {"records": self.records})
        return changed

    def _update(
        self,
        done: int,
        parameters: Mapping[str, Tensor],
        masks: MutableMapping[str, Tensor],
        optimiser: torch.optim.Optimizer,
    ) -> bool:
        if done % self._every or done >= self._steps:
            return False
        rate = self._config.death_rate * 0.5 * (1 + math.cos(math.pi * done / self._steps))
        drop_factor, grow_factor = self._factors(done)
        generator = torch.Generator().manual_seed((self._run.seed * 1_000_003 + done) % 2**32)
        weights = {name: parameters[name] for name in masks}
        priorities = self._priorities(weights, generator)
        with torch.no_grad():
            for name, weight in weights.items():
                mask, kept = masks[name], int(masks[name].sum())
                if kept == mask.numel():
                    continue  # a dense layer has nowhere to grow
                drop, grow = int(rate * drop_factor * kept), int(rate * grow_factor * kept)
                masks[name], survivors = drop_and_regrow(weight, mask, priorities[name], drop=drop, grow=grow)
                weight.masked_fill_(~survivors, 0.0)
                momentum = optimiser.state.get(weight, {}).get("momentum_buffer")
                if momentum is not None:
                    momentum.masked_fill_(~survivors, 0.0)
        return True

    def _measured(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        """What the epoch did to the masks and, with `plus`, to the robustness."""
        record = {"sparsity": masks_sparsity(masks), "hamming": hamming(self._before, masks)}
        if self._config.plus:
            training_accuracy, _ = self._robustness(*self._measured_training_images())
            accuracy, loss = self._robustness(*self._validation_set)
            signals = torch.tensor([training_accuracy - accuracy, loss], device=self._compute.device)
            record["robust_gap"], record["validation_robust_loss"] = self._compute.mean([signals])[0].tolist()
        return record

    def _factors(self, done: int) -> tuple[float, float]:
        """How much more than the death rate is dropped and regrown."""
        how = self._config.adaptation
        if not self._config.plus or done < how.start * self._steps:
            return 1.0, 1.0
        overfits = rising([r["robust_gap"] for r in self.records], how.window) >= how.threshold
        underfits = rising([r["validation_robust_loss"] for r in self.records], how.window) >= how.threshold
        return 1.0 + how.more_pruned * overfits, 1.0 + how.more_grown * underfits

    def _priorities(self, weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        if self._config.regrow == "random":
            return {name: torch.rand(w.shape, generator=generator).to(w.device) for name, w in weights.items()}
        training = self._config.training
        images, labels = on_device(self._compute.device, *self._training_set)
        rows = torch.randperm(len(images), generator=generator)[: training.batch_size]
        x, y = self._compute.images(images[rows]), labels[rows]
        with self._compute.autocast():
            attacked = adversarial_examples(self._model, x, y, eps=training.eps, config=training, generator=generator)
            with batch_norm_statistics_frozen(self._model):
                loss = robust_loss(training, self._model, x, attacked, y)
        gradients = self._compute.gradients(loss, list(weights.values()))
        return {name: gradient.abs() for name, gradient in zip(weights, gradients, strict=True)}

    def _measured_training_images(self) -> tuple[Array, Array]:
        """As many random training images as there are validation images, the same in every epoch."""
        images, labels = self._training_set
        generator = torch.Generator().manual_seed(_MEASURING_SEED)
        rows = torch.randperm(len(images), generator=generator)[: len(self._validation_set[0])]
        return torch.as_tensor(images)[rows], torch.as_tensor(labels)[rows]

    def _robustness(self, images: Array, labels: Array) -> tuple[float, float]:
        """Accuracy and cross-entropy under the attack of training; clean ones where it has none."""
        x, y = on_device(self._compute.device, images, labels)
        training = self._config.training
        generator = torch.Generator().manual_seed(_MEASURING_SEED)
        right, loss = 0, 0.0
        with evaluation_mode(self._model):
            for rows in torch.split(torch.arange(len(x)), training.batch_size):
                part, targets = self._compute.images(x[rows]), y[rows]
                attacked = adversarial_examples(
                    self._model, part, targets, eps=training.eps, config=training, generator=generator
                )
                with torch.no_grad():
                    logits = self._model(attacked)
                right += int((logits.argmax(1) == targets).sum())
                loss += float(nn.functional.cross_entropy(logits, targets, reduction="sum"))
        return right / len(x), loss / len(x)
