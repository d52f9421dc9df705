"""The loop of all score-based methods: scores trained on attacked images, weights frozen, masks cut once a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from s2ap_train.attacks.accuracy import Array, accuracy, image_shape, on_device
from s2ap_train.pruning.masks import Masks, flip_rate, hamming
from s2ap_train.pruning.perturbation import Moved
from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.score_pruning import ScorePruning
from s2ap_train.pruning.search_state import SearchState
from s2ap_train.training import (
    Batch,
    CollapseWatch,
    Run,
    adversarial_examples,
    classes_of,
    draw_batch,
    robust_loss,
    run_epochs,
    validate_alike,
)


def search_masks(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    method: ScorePruning,
    *,
    run: Run,
) -> PrunedModel:
    """Find what to keep of a network; the network itself is not changed.

    Weights and biases are frozen; scores and, for most methods, the affine part of batch normalisation are trained. The
    epoch is chosen by (robust) validation accuracy of the pruned network, as `EpochChoice` does. Running statistics are
    averaged over the passes that a step is taken on, attacked images under that step's masks; the passes that only look
    for a perturbation leave them alone.

    A collapse, as `CollapseWatch` sees it, ends the search with the mask of the last good epoch.

    Args:
        model: The network.
        images: Training images, float32 [N, C, H, W] in [0, 1].
        labels: Their labels, int64 [N].
        validation: Images and labels that choose the epoch; never the test set.
        method: `Hydra`, `Harp` or `ScratchTicket`, which is its configuration.
        run: The seed is of the order, the augmentation, the attack's random start and random scores.

    Raises:
        RecipeError: If the loss is no longer finite before any good epoch.
    """
    compute = run.compute_for(model)
    all_images, all_labels = on_device(compute.device, images, labels)
    all_images = compute.images(all_images)
    held_out = on_device(compute.device, *validation)
    watch = CollapseWatch(classes_of(model, all_images), held_out[1])
    state = SearchState(model, image_shape(images), method, watch, run)

    def begin() -> None:
        if method.score_start == "snip":
            _measure_scores(state, all_images, all_labels)
        first = state.candidate(all_images)
        if method.starts_trained and watch.begin_with(accuracy(first.model, *held_out)):
            state.best = first  # what is left if the first epoch collapses

    run_epochs(state, run, lambda: _epoch(state, all_images, all_labels, held_out), begin)
    best = state.best
    assert best is not None  # noqa: S101  (the first epoch is always accepted, or refused with an error)
    return PrunedModel(
        best.model,
        best.masks,
        best.scores,
        tuple(state.history),
        state.choice.epoch,
        collapse=state.collapse,
        searched=best.searched,
    )


class _BatchLoss:
    """`ScoreLoss` of one batch."""

    def __init__(self, state: SearchState, batch: Batch, attacked: Tensor) -> None:
        self._state, self._batch, self._attacked = state, batch, attacked

    def __call__(self, masks: Masks) -> Tensor:
        state, batch = self._state, self._batch
        values = state.allocation.values(state.scores, masks)
        effective = state.structure.effective(state.parameters, values)

        def logits(images: Tensor) -> Tensor:
            answer: Tensor = functional_call(state.model, effective, (images,))
            return answer

        with state.compute.autocast():
            return robust_loss(state.config, logits, batch.x, self._attacked, batch.y) * batch.weight

    def gradients(self, masks: Masks, tensors: Sequence[Tensor]) -> list[Tensor]:
        return self._state.compute.gradients(self(masks), tensors)


def _epoch(state: SearchState, images: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor]) -> None:
    """One epoch and what is concluded from it."""
    moves, total = [], 0.0
    for batch, size in state.draw_batches(images, labels):
        loss, moved = _step(state, batch)
        total += loss * size
        moves += [moved] if moved is not None else []
        if not math.isfinite(total):
            break
    state.compute.average_statistics(state.model)
    if not math.isfinite(total) or not all(bool(t.isfinite().all()) for t in state.trained.values()):
        state.diverge("not finite")
        return
    before, state.masks = state.masks, state.allocation.final_masks(state.scores)
    record = {
        "loss": total / len(images),
        "hamming": hamming(before, state.masks),
        "flip_to_previous": flip_rate(before, state.masks),
        "flip_rate": sum(m.flip_rate for m in moves) / max(1, len(moves)),
        "radius": sum(m.radius for m in moves) / max(1, len(moves)),
        **state.allocation.end_epoch(state.epoch),
    }
    candidate = state.candidate(images)
    record |= validate_alike(candidate.model, validation, state.config, state.compute)
    if state.judge(record):
        state.best = candidate


def _step(state: SearchState, batch: Batch) -> tuple[float, Moved | None]:
    """One step of the optimiser; the gradient is taken at the moved scores and applied at the unmoved ones."""
    masks = state.allocation.masks(state.scores)  # once: scores do not move during the attack
    loss = _BatchLoss(state, batch, _attacked(state, batch, masks))
    state.model.train()
    saved = {name: s.detach().clone() for name, s in state.scores.items()}
    moved = None
    if state.ascent is not None:
        moved = state.ascent(state.epoch, state.model, state.scores, masks, loss)
    value = loss(masks if moved is None else moved.masks)
    penalty = state.allocation.penalty(state.epoch)
    total = value if penalty is None else value + penalty.to(value)
    trained = list(state.trained.values())
    for tensor, gradient in zip(trained, state.compute.gradients(total, trained), strict=True):
        tensor.grad = gradient
    with torch.no_grad():  # restored by copy: adding and subtracting would drift
        for name, s in state.scores.items():
            s.copy_(saved[name])
    state.optimiser.step()
    return float(state.compute.mean([value.detach()])[0]), moved


def _attacked(state: SearchState, batch: Batch, masks: Masks) -> Tensor:
    """The batch's adversarial examples, made on the pruned network in evaluation mode."""
    config = state.config
    pruned = state.structure.apply(state.model, masks)
    with state.compute.autocast():
        return adversarial_examples(
            pruned, batch.x, batch.y, eps=config.eps, config=config, generator=None, start=batch.start
        )


def _measure_scores(state: SearchState, images: Tensor, labels: Tensor) -> None:
    """Start at the sizes of the loss's gradients in the masks, on one batch of the dense network.

    SNIP (Lee, Ajanthan, Torr 2019, arXiv 1810.02340) with the robust loss, scaled to at most 1 in each layer.
    """
    rows = torch.arange(min(len(images), state.config.batch_size))
    batch = draw_batch(images, labels, rows, state.config, state.generator, state.compute)
    dense = {name: torch.ones_like(s, dtype=torch.bool) for name, s in state.scores.items()}
    with torch.no_grad():
        for s in state.scores.values():
            s.fill_(1.0)  # of positive sign, so that the straight-through gradient is the mask's
    state.model.eval()
    gradients = _BatchLoss(state, batch, _attacked(state, batch, dense)).gradients(dense, list(state.scores.values()))
    with torch.no_grad():
        for s, gradient in zip(state.scores.values(), gradients, strict=True):
            s.copy_(gradient.abs() / gradient.abs().max().clamp_min(torch.finfo(s.dtype).tiny))
    state.masks = state.allocation.final_masks(state.scores)
