"""The training of a classifier, natural or adversarial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2ap_train.attacks.accuracy import Array, accuracy, on_device
from s2ap_train.attacks.weight_perturbation import perturbed, weight_perturbation
from s2ap_train.models.modes import batch_norm_statistics_frozen, evaluation_mode
from s2ap_train.training.batches import Batch, apply_masks
from s2ap_train.training.collapse import CollapseWatch
from s2ap_train.training.config import TrainingConfig
from s2ap_train.training.epochs import run_epochs
from s2ap_train.training.losses import adversarial_examples, robust_loss
from s2ap_train.training.run import Run
from s2ap_train.training.state import MaskUpdate, TrainingState
from s2ap_train.training.validation import validate_alike

Loss = Callable[[TrainingConfig, nn.Module, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Training:
    """What a training run did.

    `history` has one record per epoch that ended with a finite loss, `best_epoch` is the one, from 0, whose weights
    were kept. `collapse` says why training ended before its time with the last good weights, those that it began with
    if no epoch was good; None = it did not collapse. `stopped_early` is whether patience ran out.
    """

    history: tuple[dict[str, float], ...]
    best_epoch: int
    collapse: str | None = None
    stopped_early: bool = False


def train_classifier(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: TrainingConfig,
    *,
    run: Run,
    trained: bool = False,
    masks: Mapping[str, Tensor] | None = None,
    mask_update: MaskUpdate | None = None,
    loss: Loss = robust_loss,
) -> Training:
    """Train a model in place; it ends in evaluation mode with the weights of the epoch that `EpochChoice` took.

    SGD with momentum, learning rate on a cosine to zero. The loss is `robust_loss` in training mode; its examples are
    made in evaluation mode, and the epoch is chosen by robust validation accuracy where there is one. With
    `weight_radius` > 0 the gradient is taken at adversarially perturbed weights (Wu et al. 2020), found on the same
    examples; that pass leaves batch-normalisation statistics alone.

    A collapse, as `CollapseWatch` sees it, ends training with the weights of the last good epoch.

    Args:
        model: Images [N, C, H, W] in [0, 1] -> logits [N, K].
        images: Training images, float32 [N, C, H, W] in [0, 1].
        labels: Their labels, int64 [N].
        validation: Images and labels that choose the epoch; never the test set.
        config: Hyper-parameters.
        run: The seed is of the order, the augmentation and the attack's random start.
        trained: Whether the model was trained before: a fall from its accuracy is then a collapse, also in the first
            epoch, and leaves the model as it came.
        masks: By parameter name, True = kept: these weights stay exactly 0 wherever their mask is False.
        mask_update: Called after every optimiser step; it may change the masks, in place or by new ones under the same
            names. `masks` must then be a mutable mapping and ends with the masks of the chosen epoch. The momentum of
            weights whose mask changed is set to 0. With several processes it must do the same in all of them.
        loss: Settings, model in training mode, images, attacked images and labels to the mean loss of a batch.

    Raises:
        RecipeError: If the loss is no longer finite before any good epoch, a mask fits no weight, or a batch is too
            small for the number of processes.
    """
    compute = run.compute_for(model)
    compute.place(model)
    all_images, all_labels = on_device(compute.device, images, labels)
    all_images = compute.images(all_images)
    held_out = on_device(compute.device, *validation)
    watch = CollapseWatch(classes_of(model, all_images), held_out[1])
    state = TrainingState(model, config, masks or {}, watch, run)

    def begin() -> None:
        if trained and watch.begin_with(accuracy(model, *held_out)):
            state.keep()  # what is left if the first epoch collapses

    run_epochs(state, run, lambda: _epoch(state, all_images, all_labels, held_out, mask_update, loss), begin)
    assert state.best is not None  # noqa: S101  (the first validated epoch is always accepted, and the last validated)
    model.load_state_dict(state.best)
    model.eval()
    if mask_update is not None and isinstance(masks, MutableMapping):
        masks.update(state.best_masks)
    return Training(tuple(state.history), state.choice.epoch, state.collapse, state.stopped_early)


def classes_of(model: nn.Module, images: Tensor) -> int:
    """Number of classes K of a network: the logits it has for the first image [1, C, H, W]."""
    known = getattr(model, "classes", None)
    if isinstance(known, int):
        return known
    with evaluation_mode(model), torch.no_grad():
        return int(model(images[:1]).shape[1])


def _epoch(
    state: TrainingState,
    images: Tensor,
    labels: Tensor,
    validation: tuple[Tensor, Tensor],
    mask_update: MaskUpdate | None,
    loss: Loss,
) -> None:
    """One epoch and what is concluded from it."""
    config, epoch, total = state.config, state.epoch, 0.0
    eps = config.eps * min(1.0, (epoch + 1) / (config.eps_warmup_epochs + 1))
    radius = config.weight_radius if epoch >= config.weight_warmup_epochs else 0.0
    for batch, size in state.draw_batches(images, labels):
        total += _step(state, batch, loss, eps=eps, radius=radius) * size
        if not math.isfinite(total):
            break
        if mask_update is not None:
            state.update_masks(mask_update)
        if state.average is not None:
            state.average.update(state.model)
        state.step += 1
    state.compute.average_statistics(state.model, *([] if state.average is None else [state.average.model]))
    record = {"loss": total / len(images) if _finite(state.model) else math.nan}
    if not math.isfinite(record["loss"]):
        state.diverge(record["loss"])
        return
    if (epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs:
        record |= validate_alike(state.candidate, validation, config, state.compute)
    if state.judge(record):
        state.keep()


def _step(state: TrainingState, batch: Batch, loss_of: Loss, *, eps: float, radius: float) -> float:
    """One optimiser step, its gradient taken at the perturbed weights if `radius` > 0; the loss there."""
    model, config, compute = state.model, state.config, state.compute
    trained, masks, x, y = state.trained, state.masks, batch.x, batch.y
    with compute.autocast():
        attacked = adversarial_examples(model, x, y, eps=eps, config=config, generator=None, start=batch.start)
    model.train()

    def loss_here() -> Tensor:
        with compute.autocast():  # one context a pass: within one, lower-precision copies of the weights are reused
            return loss_of(config, model, x, attacked, y) * batch.weight

    def gradients_of(loss: Tensor) -> dict[str, Tensor]:
        return dict(zip(trained, compute.gradients(loss, list(trained.values())), strict=True))

    perturbation: dict[str, Tensor] = {}
    if radius:
        with batch_norm_statistics_frozen(model):
            gradients = gradients_of(loss_here())
        weights = {name: p for name, p in trained.items() if p.dim() > 1}
        perturbation = weight_perturbation(weights, gradients, radius, masks)
    with perturbed(state.parameters, perturbation):
        loss = loss_here()
        gradients = gradients_of(loss)
    for name, gradient in gradients.items():
        trained[name].grad = gradient.masked_fill(~masks[name], 0.0) if name in masks else gradient
    state.optimiser.step()
    apply_masks(state.parameters, masks)
    return float(compute.mean([loss.detach()])[0])


def _finite(model: nn.Module) -> bool:
    return all(bool(t.isfinite().all()) for t in model.state_dict().values() if t.is_floating_point())
