"""The cheapest detector there is, and its attack: one answer, flagged where it is least confident.

Hendrycks and Gimpel 2017 (arXiv 1610.02136): the largest probability of a network tells its mistakes from the rest.
What a defence adds is measured against it. It is attacked for confidence: an attacker that knows it makes the network
sure of a wrong label.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from s2ap_defend.types import Float32, Int64
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.margins import best_other, targeted_margin
from s2ap_train.adaptive.objectives import Objective
from s2ap_train.adaptive.plans import Descent, bare_plan
from s2ap_train.adaptive.systems import RIGHT
from s2ap_train.attacks.right_images import label_margin
from s2ap_train.statistics.outcome import Outcome

__all__ = ["ConfidenceSystem", "confidence_objective", "confidence_plan", "sure_objective"]

_SLACK = 0.05  # nats
_FLOOR = 1e-30


class ConfidenceSystem:
    """A network, or a jury's mean probability, that flags where its largest probability is below a threshold.

    Args:
        log_probabilities: Images [N, C, H, W] in [0, 1] -> log-probabilities [N, K].
        threshold: Largest probability below which an image is flagged; set it at the false-alarm rate of what it is
            compared with, on clean images that nothing else was fitted on.

    Raises:
        ValueError: Unless the threshold is a probability.
    """

    def __init__(self, log_probabilities: Callable[[Float32], Float32], threshold: float) -> None:
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"the threshold of the confidence is {threshold}; expected a probability")
        self._log_probabilities = log_probabilities
        self._least = math.log(max(threshold, _FLOOR))

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome of its labels; the score leads across the label, RIGHT and more before, then above the threshold."""
        said = self._log_probabilities(images).astype(np.float64)
        label, confidence = said.argmax(axis=1), said.max(axis=1)
        flagged, wrong = confidence < self._least, label != labels
        margin = np.maximum(label_margin(said, labels), 0.0)
        unsure = self._least - confidence + _FLOOR
        nobody = np.zeros(len(labels), dtype=np.int64)
        return Outcome(
            label=label,
            flagged=flagged,
            abstained=np.zeros(len(labels), dtype=bool),
            members_used=nobody,
            score=np.where(wrong, np.where(flagged, unsure, -1.0), RIGHT + margin),
            evidence=-confidence,
            margin=margin,
            not_asked=nobody,
        )


def confidence_objective(threshold: float, *, weight: float = 1.0, slack: float = _SLACK) -> Objective:
    """The network says t, and with a probability above the threshold: both are hinges.

    Args:
        threshold: As for `ConfidenceSystem`.
        weight: Of the confidence, against nats of the margin.
        slack: Nats by which both terms are exceeded.
    """
    least = math.log(max(threshold, _FLOOR))

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        unsure = least - c.gather(1, t[:, None])[:, 0]
        return (targeted_margin(c, t) + slack).clamp_min(0.0) + weight * (unsure + slack).clamp_min(0.0)

    return Objective(f"confidence x{weight:g}", 0, loss)


def sure_objective() -> Objective:
    """The network is as sure as can be of any wrong label."""
    return Objective("sure of a wrong label", 0, lambda c, m, y, t: -best_other(c, y))  # noqa: ARG005


def confidence_plan(threshold: float, budget: AdaptiveBudget) -> list[Descent]:
    """Descents of an attacker that knows network and threshold: those of a bare classifier, then for confidence.

    Args:
        threshold: As for `ConfidenceSystem`.
        budget: How many labels are aimed at, and whether the plan is a short one.
    """
    joint = confidence_objective(threshold)
    plan = [*bare_plan(budget), Descent(sure_objective(), "none", "random")]
    plan += [Descent(joint, "none", "best", target=rank) for rank in range(budget.targets)]
    if budget.thorough:
        sharp = confidence_objective(threshold, weight=4.0)
        plan += [Descent(sure_objective(), "none", "best"), Descent(sharp, "none", "best", target=0)]
        plan += [Descent(joint, "none", "random", target=rank) for rank in range(budget.targets)]
    return plan
