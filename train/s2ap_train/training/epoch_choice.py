"""Which epoch's weights are kept, and when waiting for a better one ends."""

from __future__ import annotations

import math
from collections.abc import Mapping


class EpochChoice:
    """Which epoch to keep: the latest whose validation accuracy is within one standard error of the best so far.

    Breiman et al. 1984's rule, with later for simpler: a small validation set must not throw away epochs for its noise,
    but overfitting and collapse beyond the noise are undone. `epoch` is the one kept, `waited` the number of validated
    epochs since the best accuracy was last raised.
    """

    def __init__(self, validation_size: int) -> None:
        self.epoch, self.waited = 0, 0
        self._size, self._best = validation_size, 0.0

    def accepts(self, epoch: int, record: Mapping[str, float]) -> bool:
        """Whether this epoch is kept, by robust accuracy where the record has it."""
        score = record.get("validation_robust_accuracy", record["validation_accuracy"])
        self.waited = 0 if score > self._best else self.waited + 1
        self._best = max(self._best, score)
        if score < self._best - math.sqrt(self._best * (1 - self._best) / self._size):
            return False
        self.epoch = epoch
        return True

    def forget(self) -> None:
        """Forget all epochs so far: they were not worth keeping."""
        self.waited, self._best = 0, 0.0

    def out_of_patience(self, patience: int) -> bool:
        """Whether `patience` validated epochs have passed without a better one; 0 is endless patience.

        The answer to robust overfitting (Rice et al. 2020, arXiv 2002.11569): robust validation accuracy falls long
        before training ends, while the training loss goes on falling.
        """
        return 0 < patience <= self.waited

    def state(self) -> dict[str, float]:
        """What `restore` needs to go on from here, as JSON values."""
        return {"epoch": self.epoch, "waited": self.waited, "best": self._best}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a `state()`."""
        self.epoch, self.waited, self._best = int(state["epoch"]), int(state["waited"]), float(state["best"])
