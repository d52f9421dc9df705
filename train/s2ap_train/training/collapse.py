"""Collapse: a network that no longer tells classes apart."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from s2ap_train.attacks.accuracy import Array

_STANDARD_ERRORS = 3.0


class CollapseWatch:
    """Judges each epoch's record of one training or mask search.

    Signs of collapse, on a validation set of n images of K classes:

    * the loss is not finite;
    * accuracy is at chance, at most 1/K + 3 standard errors;
    * one class takes more than half of the predictions, and more than 3 standard errors above the share of labels that
      the commonest class has.

    The last two count only where accuracy has fallen from an epoch without them, by more than the 3 standard errors of
    a difference between two measurements: training that has not begun to learn is slow, not collapsed.
    """

    def __init__(self, classes: int, labels: Array) -> None:
        """Watch a training.

        Args:
            classes: Number of classes K.
            labels: Labels of the validation images, int64 [n].
        """
        counts = torch.as_tensor(labels).bincount(minlength=classes)
        self.size = int(counts.sum())
        self._chance = 1 / classes + self._error(1 / classes)
        commonest = float(counts.max()) / self.size
        self._largest_share = max(0.5, commonest + self._error(commonest))
        self._best = 0.0  # accuracy of the best epoch without a sign

    def begin_with(self, accuracy: float) -> bool:
        """Whether the network that a training begins with tells classes apart, by its validation accuracy.

        If it does, a fall from there is a collapse, also in the first epoch.
        """
        if accuracy > self._chance:
            self._best = accuracy
        return self.has_learned

    @property
    def has_learned(self) -> bool:
        """Whether an epoch without a sign of collapse was seen."""
        return self._best > 0

    def reason(self, record: Mapping[str, float]) -> str | None:
        """What in this record says collapse; None = nothing does.

        Args:
            record: `loss` and, where the epoch was validated, `validation_accuracy` and `largest_class_share`.
        """
        if not math.isfinite(record["loss"]):
            return f"the loss is {record['loss']}"
        if "validation_accuracy" not in record:
            return None
        accuracy, share = record["validation_accuracy"], record["largest_class_share"]
        fallen = self._best - accuracy > math.hypot(self._error(self._best), self._error(accuracy))
        earlier = f"after {self._best:.1%} in an earlier epoch"
        if share > self._largest_share:
            sign = f"one class takes {share:.0%} of the predictions at an accuracy of {accuracy:.1%}, {earlier}"
            return sign if fallen else None
        if accuracy <= self._chance:
            return f"accuracy is {accuracy:.1%}, which is chance, {earlier}" if fallen else None
        self._best = max(self._best, accuracy)
        return None

    def state(self) -> dict[str, float]:
        """What `restore` needs to go on from here, as JSON values."""
        return {"best": self._best}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a `state()`."""
        self._best = float(state["best"])

    def _error(self, share: float) -> float:
        """Three standard errors of a share measured on the validation set."""
        return _STANDARD_ERRORS * math.sqrt(share * (1 - share) / self.size)
