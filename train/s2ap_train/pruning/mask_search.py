"""The loop that HYDRA and S2AP share: train scores on adversarial examples, weights frozen, masks cut once per step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import Array, on_device
from s2ap_train.pruning.masks import Masks, flip_rate, hamming, layer_masks
from s2ap_train.pruning.scores import masked_weights, prunable_weights, scaled_magnitude
from s2ap_train.training import (
    EpochChoice,
    OnEpoch,
    TrainingConfig,
    adversarial_examples,
    batches,
    cosine,
    shifted,
    validate,
)

Scores = dict[str, Tensor]
ScoreLoss = Callable[[Masks], Tensor]
"""Masks by name -> the loss of one batch, differentiable in the scores."""


@dataclass(frozen=True)
class PrunedModel:
    """A network whose pruned weights are 0, and what led there.

    `history` holds per epoch: loss, validation_accuracy, validation_robust_accuracy (of the mask, before any
    fine-tuning), hamming and flip_to_previous (the mask against the previous epoch's), flip_rate and radius (means over
    the epoch's ascent steps; 0 without any).
    """

    model: nn.Module
    masks: dict[str, Tensor]
    scores: Scores
    history: tuple[dict[str, float], ...]
    best_epoch: int


@dataclass(frozen=True)
class Moved:
    """What a perturbation of the scores did: masks there, fraction of kept weights that changed, radius."""

    masks: dict[str, Tensor]
    flip_rate: float
    radius: float


class ScorePerturbation(Protocol):
    """Moves the scores in place before the gradient is taken; the loop puts them back."""

    def __call__(self, epoch: int, model: nn.Module, scores: Scores, masks: Masks, loss: ScoreLoss) -> Moved | None:
        """What it did; None = it left the scores alone."""


def search_masks(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: TrainingConfig,
    *,
    sparsity: float,
    seed: int,
    perturbation: ScorePerturbation | None = None,
    on_epoch: OnEpoch | None = None,
) -> PrunedModel:
    """Find which weights of a trained network to keep; the network itself is not changed.

    Weights and biases are frozen; scores and the affine part of batch normalisation are trained. Every layer keeps the
    same ratio. The epoch is chosen by (robust) validation accuracy of the pruned network, as `EpochChoice` does.

    Args:
        model: The trained network.
        images: Training images, float32 [N, C, H, W] in [0, 1].
        labels: Their labels, int64 [N].
        validation: Images and labels that choose the epoch.
        config: Epochs, learning rate and weight decay of the scores, and the attack.
        sparsity: Fraction of each layer's weights to remove.
        seed: Of the order, the shifts and the attack's random start.
        perturbation: Where else to take the gradient; None is HYDRA.
        on_epoch: Called after each epoch with its number and record.

    Raises:
        RecipeError: If the sparsity is not in [0, 1), the loss is no longer finite, or the config asks for something
            that a mask search, whose weights are frozen, does not do.
    """
    if not 0 <= sparsity < 1:
        raise RecipeError(f"sparsity is {sparsity}; it is the fraction of weights removed, at least 0 and below 1")
    unused = ("weight_radius", "average_decay", "eps_warmup_epochs", "label_smoothing")
    if any(getattr(config, name) for name in unused):
        raise RecipeError(
            f"a mask search does not use {', '.join(unused)}; set them to 0 here, they belong to fine-tuning"
        )
    trainer = _ScoreTrainer(model, 1 - sparsity, config, torch.Generator().manual_seed(seed))
    all_images, all_labels = on_device(next(model.parameters()).device, images, labels)
    previous, history = trainer.masks(), []
    choice, found = EpochChoice(len(validation[0])), None
    for epoch in range(config.epochs):
        losses, moves = [], []
        order = batches(len(all_images), config.batch_size, trainer.generator)
        for step, rows in enumerate(order):
            trainer.optimiser.param_groups[0]["lr"] = cosine(config.lr, epoch + step / len(order), config.epochs)
            x = shifted(all_images[rows], config.shift, trainer.generator)
            loss, move = trainer.step(x, all_labels[rows], epoch, perturbation)
            losses.append(loss)
            moves += [move] if move is not None else []
        mean_loss = sum(losses) / len(losses)
        if not math.isfinite(mean_loss):
            raise RecipeError(
                f"the loss is {mean_loss} after epoch {epoch} of the mask search; lower lr (now {config.lr})"
            )
        masks = trainer.masks()
        pruned = pruned_copy(trainer.model, masks)
        record = {
            "loss": mean_loss,
            "hamming": hamming(previous, masks),
            "flip_to_previous": flip_rate(previous, masks),
            "flip_rate": sum(m.flip_rate for m in moves) / max(1, len(moves)),
            "radius": sum(m.radius for m in moves) / max(1, len(moves)),
            **validate(pruned, validation, config),
        }
        previous = masks
        history.append(record)
        if choice.accepts(epoch, record):
            found = PrunedModel(pruned, masks, trainer.copied_scores(), (), epoch)
        if on_epoch is not None:
            on_epoch(epoch, record)
    assert found is not None  # noqa: S101  (the first epoch is always accepted)
    return replace(found, history=tuple(history))


def pruned_copy(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of the network in evaluation mode with pruned weights set to 0."""
    pruned = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, weight in prunable_weights(pruned).items():
            weight.masked_fill_(~masks[name], 0.0)
    return pruned


class _ScoreTrainer:
    """State of a mask search: a copy of the network, its frozen weights, the scores, and their optimiser."""

    def __init__(self, model: nn.Module, keep_ratio: float, config: TrainingConfig, generator: torch.Generator) -> None:
        self.model = copy.deepcopy(model)
        self.generator = generator
        self._keep_ratio, self._config = keep_ratio, config
        self._weights = {name: w.detach().clone() for name, w in prunable_weights(self.model).items()}
        self._scores = {name: scaled_magnitude(w).requires_grad_() for name, w in self._weights.items()}
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        self._trained = [*self._scores.values(), *(p for m in norms for p in m.parameters())]
        self.optimiser = torch.optim.SGD(
            self._trained, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def masks(self) -> dict[str, Tensor]:
        """Masks at the present scores."""
        return layer_masks(self._scores, self._keep_ratio)

    def copied_scores(self) -> Scores:
        """The present scores, detached."""
        return {name: s.detach().clone() for name, s in self._scores.items()}

    def step(
        self, x: Tensor, y: Tensor, epoch: int, perturbation: ScorePerturbation | None
    ) -> tuple[float, Moved | None]:
        """One step of the optimiser; the gradient is taken at the moved scores and applied at the unmoved ones."""
        masks = self.masks()  # once: scores do not move during the attack
        if self._config.eps:
            pruned = pruned_copy(self.model, masks)
            x = adversarial_examples(pruned, x, y, eps=self._config.eps, config=self._config, generator=self.generator)
        self.model.train()

        def loss_at(masks: Masks) -> Tensor:
            effective = masked_weights(self._weights, self._scores, masks)
            return cross_entropy(functional_call(self.model, effective, (x,)), y)

        saved = self.copied_scores()
        moved = perturbation(epoch, self.model, self._scores, masks, loss_at) if perturbation else None
        loss = loss_at(masks if moved is None else moved.masks)
        for tensor, gradient in zip(self._trained, torch.autograd.grad(loss, self._trained), strict=True):
            tensor.grad = gradient
        with torch.no_grad():  # restored by copy: adding and subtracting would drift
            for name, s in self._scores.items():
                s.copy_(saved[name])
        self.optimiser.step()
        return float(loss.detach()), moved
