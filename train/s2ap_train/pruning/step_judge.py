"""Whether a step of iterative pruning went too far."""

from __future__ import annotations

from collections.abc import Mapping

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import Array
from s2ap_train.pruning.masks import Masks
from s2ap_train.training import CollapseWatch


class StepJudge:
    """Judges pruned and retrained networks against the dense one.

    A network has collapsed if `CollapseWatch` says so (loss not finite, accuracy at chance, one class over half of the
    predictions), clean accuracy has fallen too far, robust accuracy is near chance, a layer keeps fewer weights than
    its minimum, or too many of a layer's outputs have no weight left.
    """

    def __init__(
        self,
        dense: Mapping[str, float],
        labels: Array,
        *,
        classes: int,
        minimum_kept: int,
        largest_clean_drop: float,
        robust_margin: float,
        largest_dead_share: float,
    ) -> None:
        """Take the dense network as the measure.

        Args:
            dense: Its record on the validation set.
            labels: Of the validation set, int64 [n].
            classes: Number of classes K.
            minimum_kept: Weights that a layer must keep, and never less than one.
            largest_clean_drop: Clean accuracy, as a fraction, that may be lost.
            robust_margin: Robust accuracy must be at least 1/K and this.
            largest_dead_share: Fraction of a layer's outputs that may have no weight left.

        Raises:
            RecipeError: If the dense network would be judged collapsed itself, or is at chance.
        """
        self._watch = CollapseWatch(classes, labels)
        self._dense_accuracy = dense["validation_accuracy"]
        self._least_robust = 1 / classes + robust_margin
        self._least_kept = max(1, minimum_kept)
        self._largest_clean_drop, self._largest_dead_share = largest_clean_drop, largest_dead_share
        reason = self.of_record({"loss": 0.0, **dense})
        if reason is None and not self._watch.has_learned:
            reason = f"its validation accuracy is {self._dense_accuracy:.1%}, which is chance"
        if reason is not None:
            raise RecipeError(f"the network cannot be judged by this pruning: {reason}; train it before it is pruned")

    def of_masks(self, masks: Masks) -> str | None:
        """What is wrong with masks by weight name; None = nothing."""
        for name, mask in masks.items():
            kept = int(mask.sum())
            if kept < min(self._least_kept, mask.numel()):
                return f"{name} keeps {kept} of {mask.numel()} weights, fewer than {self._least_kept}"
        name, share = dead_output_share(masks)
        if share > self._largest_dead_share:
            return f"{share:.0%} of the outputs of {name} have no weight left"
        return None

    def of_record(self, record: Mapping[str, float]) -> str | None:
        """What is wrong with a validated record of retraining; None = nothing."""
        reason = self._watch.reason(record)
        if reason is not None:
            return reason
        drop = self._dense_accuracy - record["validation_accuracy"]
        if drop > self._largest_clean_drop:
            return f"clean accuracy fell by {drop:.1%} below the dense network's {self._dense_accuracy:.1%}"
        robust = record.get("validation_robust_accuracy")
        if robust is not None and robust < self._least_robust:
            return f"robust accuracy is {robust:.1%}, below {self._least_robust:.1%} (chance and the margin)"
        return None


def dead_output_share(masks: Masks) -> tuple[str, float]:
    """The layer with the largest fraction of outputs (channels, units) that have no weight left, and that fraction."""
    shares = {name: float((~mask.flatten(1).any(1)).float().mean()) for name, mask in masks.items()}
    worst = max(shares, key=lambda name: shares[name])
    return worst, shares[worst]
