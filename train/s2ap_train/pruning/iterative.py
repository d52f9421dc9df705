"""Iterative magnitude pruning: a little at a time, retrained after every step, taken back where it collapses."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import Array
from s2ap_train.pruning.magnitude import SCOPES, Scope, magnitude_masks
from s2ap_train.pruning.masks import Masks, hamming
from s2ap_train.pruning.masks import sparsity as masks_sparsity
from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.step_judge import StepJudge
from s2ap_train.storage.checkpoint import restore
from s2ap_train.training import Run, Training, TrainingConfig, classes_of, train_classifier, validate_alike
from s2ap_train.training.run import Groups

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IterativeMagnitude:
    """Hyper-parameters of `prune_iteratively`.

    Attributes:
        sparsity: To reach; fraction removed.
        step: Fraction that one step removes; practice is 0.05 to 0.1.
        of: Of the weights that remain, or of the initial ones. 10 % of the remaining reach half in 7 steps, 5 % in 14.
        scope: How weights are compared, as in `prune_magnitude`.
        minimum_kept: Weights that every layer keeps, as in `prune_magnitude`.
        largest_clean_drop: Clean validation accuracy, as a fraction, that may be lost against the dense network.
        robust_margin: Robust validation accuracy must stay this far above chance.
        largest_dead_share: Fraction of a layer's outputs that may have no input left.
        training: The retraining after every step, by default on attacked images.
    """

    sparsity: float = 0.5
    step: float = 0.1
    of: Literal["remaining", "initial"] = "remaining"
    scope: Scope = "layer"
    minimum_kept: int = 1
    largest_clean_drop: float = 0.2
    robust_margin: float = 0.02
    largest_dead_share: float = 0.9
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=3, lr=0.05))
    method: Literal["iterative-magnitude"] = field(default="iterative-magnitude", kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what cannot be pruned.

        Raises:
            RecipeError: With the values and what they may be.
        """
        if not 0 < self.sparsity < 1 or not 0 < self.step < 1:
            raise RecipeError(f"sparsity is {self.sparsity} and step {self.step}; both must be above 0 and below 1")
        if self.of not in ("remaining", "initial") or self.scope not in SCOPES:
            raise RecipeError(
                f"of is {self.of!r} and scope {self.scope!r}; choose remaining or initial, and {', '.join(SCOPES)}"
            )
        limits = (self.largest_clean_drop, self.robust_margin, self.largest_dead_share)
        if not all(0 <= limit <= 1 for limit in limits) or self.minimum_kept < 0:
            raise RecipeError(
                f"largest_clean_drop, robust_margin and largest_dead_share are {limits}, minimum_kept is "
                f"{self.minimum_kept}; the first three lie between 0 and 1, the last is at least 0"
            )

    def schedule(self) -> tuple[float, ...]:
        """Sparsity after each step; the last is exactly the target."""
        reached: list[float] = []
        while True:
            steps = len(reached) + 1
            after = 1 - (1 - self.step) ** steps if self.of == "remaining" else self.step * steps
            if after >= self.sparsity or math.isclose(after, self.sparsity, rel_tol=1e-9):
                return (*reached, self.sparsity)
            reached.append(after)


@dataclass(frozen=True)
class PruningStep:
    """One step: the sparsity aimed at, the accuracies on the validation set after retraining, and what was wrong.

    `robust_accuracy` is None where retraining is natural; both are None where the step was given up before retraining.
    """

    sparsity: float
    clean_accuracy: float | None
    robust_accuracy: float | None
    collapse: str | None


@dataclass(frozen=True)
class IterativeResult(PrunedModel):
    """The last good step of `prune_iteratively`, its sparsity, and the steps that were taken, the bad one included.

    `best_epoch` is the kept epoch's place in `history`; after a roll-back to the dense network it is -1. Records carry
    also step (from 1), sparsity and hamming (the mask against the one before the step; 0 in its later epochs).
    """

    steps: tuple[PruningStep, ...] = ()
    reached_sparsity: float = 0.0


def prune_iteratively(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: IterativeMagnitude,
    *,
    run: Run,
) -> IterativeResult:
    """Prune a trained network step by step, each followed by retraining; the network itself is not changed.

    Weights that are pruned stay so. After every step the network is judged on the validation set against what it was
    before any pruning; if it has collapsed, the last good step is restored, pruning ends, and `collapse` says why.

    Args:
        model: The trained network.
        images: Training images, float32 [N, C, H, W] in [0, 1].
        labels: Their labels, int64 [N].
        validation: Images and labels that choose epochs and judge steps; never the test set.
        config: Hyper-parameters.
        run: The retraining of step i, from 0, has its seed + i. Snapshots are of steps, and of epochs within a step;
            epochs are counted through all steps.

    Raises:
        RecipeError: If the dense network is already collapsed by these limits, or nothing can be pruned.
    """
    state = _Steps(model, (images, labels), validation, config, run)
    run.resume(state)
    schedule = config.schedule()
    while state.collapse is None and len(state.steps) < len(schedule):
        number = len(state.steps)
        retraining = run.phase(f"step-{number}", seed=run.seed + number)
        state.step(schedule[number], retraining)
        run.save(*state.snapshot())
        retraining.clear()
    return state.result()


class _Steps:
    """State between steps: the last good network with its masks, and what was done."""

    def __init__(
        self,
        model: nn.Module,
        training_set: tuple[Array, Array],
        validation: tuple[Array, Array],
        config: IterativeMagnitude,
        run: Run,
    ) -> None:
        compute = run.compute_for(model)
        self.model, self.config = compute.place(copy.deepcopy(model)).eval(), config
        self.training_set, self.validation = training_set, validation
        weights = prunable_weights(self.model)
        self.masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
        self.steps: list[PruningStep] = []
        self.history: list[dict[str, float]] = []
        self.best_epoch = -1
        self.collapse: str | None = None
        self._judge = StepJudge(
            validate_alike(self.model, validation, config.training, compute),
            validation[1],
            classes=classes_of(self.model, torch.as_tensor(training_set[0][:1]).to(compute.device)),
            minimum_kept=config.minimum_kept,
            largest_clean_drop=config.largest_clean_drop,
            robust_margin=config.robust_margin,
            largest_dead_share=config.largest_dead_share,
        )
        self._cut(config.sparsity)  # raises now, and not after hours, what the last step would

    def step(self, target: float, run: Run) -> None:
        """Prune to the target, retrain and judge; keep the result, or stay here and say why."""
        masks, first = self._cut(target), len(self.history)
        record: Mapping[str, float] = {}
        reason = self._judge.of_masks(masks)
        if reason is None:
            network = copy.deepcopy(self.model)
            training = self._retrained(network, masks, run)
            if training is None:
                reason = "the loss of its retraining is not finite"
            else:
                record = training.history[training.best_epoch]
                reason = training.collapse or self._judge.of_record(record)
                if reason is None:
                    self.model, self.masks, self.best_epoch = network, masks, first + training.best_epoch
        clean, robust = record.get("validation_accuracy"), record.get("validation_robust_accuracy")
        self.steps.append(PruningStep(target, clean, robust, reason))
        if reason is not None:
            number = len(self.steps)
            self.collapse = (
                f"step {number} of {len(self.config.schedule())}, to sparsity {target:.3f}, collapsed: {reason}; "
                f"this is the network of step {number - 1}, at sparsity {masks_sparsity(self.masks):.3f}"
            )
            _log.warning("%s", self.collapse)

    def result(self) -> IterativeResult:
        """The last good network."""
        return IterativeResult(
            model=self.model,
            masks=self.masks,
            scores={name: w.detach().clone() for name, w in prunable_weights(self.model).items()},
            history=tuple(self.history),
            best_epoch=self.best_epoch,
            collapse=self.collapse,
            steps=tuple(self.steps),
            reached_sparsity=masks_sparsity(self.masks),
        )

    def snapshot(self) -> tuple[Groups, dict[str, Any]]:
        """Tensors and JSON values that `resume` needs."""
        record = {
            "steps": [asdict(step) for step in self.steps],
            "history": self.history,
            "best_epoch": self.best_epoch,
            "collapse": self.collapse,
        }
        return {"model": self.model.state_dict(), "mask": self.masks}, record

    def resume(self, groups: Groups, record: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`."""
        restore(self.model, groups["model"])
        for name, mask in self.masks.items():
            mask.copy_(groups["mask"][name])
        self.steps = [PruningStep(**step) for step in record["steps"]]
        self.history = list(record["history"])
        self.best_epoch, self.collapse = record["best_epoch"], record["collapse"]

    def _cut(self, sparsity: float) -> dict[str, Tensor]:
        config, weights = self.config, prunable_weights(self.model)
        return magnitude_masks(
            weights, sparsity=sparsity, scope=config.scope, minimum_kept=config.minimum_kept, within=self.masks
        )

    def _retrained(self, network: nn.Module, masks: Masks, run: Run) -> Training | None:
        """Retrain in place and add to the history; None = the loss was not finite before any epoch was good."""
        moved = hamming(self.masks, masks)
        added = {"step": float(len(self.steps) + 1), "sparsity": masks_sparsity(masks)}

        def extended(epoch: int, record: Mapping[str, float]) -> dict[str, float]:
            return {**record, **added, "hamming": 0.0 if epoch else moved}

        try:
            training = train_classifier(
                network,
                *self.training_set,
                self.validation,
                self.config.training,
                run=run.extending(extended, first=len(self.history)),
                masks=masks,
            )
        except RecipeError:
            if all(bool(p.isfinite().all()) for p in network.parameters()):
                raise  # something else, that the next step would meet too
            return None
        self.history += [extended(epoch, record) for epoch, record in enumerate(training.history)]
        return training
