"""The cheapest detector: a network that flags the inputs that it is least confident of, and its attacker."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from onnx import ModelProto
from torch import Tensor

from s2ap_defend.types import Float32, Int64
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.objectives import Objective
from s2ap_train.adaptive.plans import Descent, Start, bare_plan
from s2ap_train.adaptive.systems import RIGHT, System, never_flagged
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.statistics.outcome import Outcome

__all__ = ["ConfidenceSystem", "confidence_objective", "confidence_plan", "threshold_at"]

_STARTS: tuple[Start, ...] = ("random", "best")
_FLOOR = 1e-30


class ConfidenceSystem(System):
    """A network that flags every input whose largest probability is below a threshold.

    Args:
        log_probabilities: Images [N, C, H, W] -> log-probabilities [N, K].
        threshold: The probability.
    """

    def __init__(self, log_probabilities: Callable[[Float32], Float32], threshold: float) -> None:
        self._log_probabilities, self._threshold = log_probabilities, math.log(max(threshold, _FLOOR))

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome of the network's labels.

        The score leads a search across the border of the label first (RIGHT plus the margin, nats), then to more
        confidence in the wrong one.
        """
        said = self._log_probabilities(images)
        confidence = said.max(axis=1).astype(np.float64)
        flagged = confidence < self._threshold
        alone = never_flagged(said, labels)
        wrong = np.where(flagged, self._threshold - confidence, -1.0)
        return replace(alone, flagged=flagged, score=np.where(alone.success, wrong, RIGHT + alone.score))


def confidence_objective() -> Objective:
    """One wrong label, with confidence: the probability that is not the target's, in log-odds."""

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        others = c.scatter(1, t[:, None], -np.inf).logsumexp(1)
        return others - c.gather(1, t[:, None])[:, 0]

    return Objective("confidence", 0, loss)


def confidence_plan(budget: AdaptiveBudget) -> list[Descent]:
    """Descents of `bare_plan`, each likely wrong label with confidence after them, from a random point and the best."""
    confident = [
        Descent(confidence_objective(), "none", start, rank) for start in _STARTS for rank in range(budget.targets)
    ]
    return [*bare_plan(budget), *confident]


def threshold_at(stage: ModelProto, images: Float32, flagged: int) -> float:
    """The probability that a network's largest one is below for so many of these images.

    It is set on the very images on which the figures are measured, so that both systems raise as many false alarms
    there, to the image; whoever served the network would take a threshold from held-out images and be off by chance.
    Where confidences tie at the threshold, all of them are flagged: the doubt is the baseline's gain.

    Args:
        stage: `image` -> `log_probabilities`.
        images: Clean images [N, C, H, W].
        flagged: How many of them the other system flags, or does not answer, 0 to N.
    """
    if flagged == 0:
        return 0.0
    confidence = np.sort(StageEngines(None, stage, (), threads=1).ask(images).classifier.max(axis=1).astype(np.float64))
    highest = confidence[flagged - 1]
    above = confidence[confidence > highest]
    return float(np.exp((highest + above[0]) / 2)) if len(above) else 1.0
