"""Figures of a detector: area under the ROC curve, detection at a false-alarm rate, and their uncertainty.

A detector orders inputs by one statistic, larger for 'adversarial'. Negatives are clean inputs, positives attacked
ones; what stands here does not depend on how the detector was calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from s2ap_defend.types import Bool, Float64
from s2ap_train.statistics.figures import clopper_pearson

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Share:
    """A share of `count` inputs with its 95 % Clopper-Pearson interval; nan of no inputs.

    Attributes:
        value: In [0, 1].
        low: Lower end.
        high: Upper end.
        count: Inputs.
    """

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, hits: Bool) -> Share:
        """The share of True."""
        if not len(hits):
            return cls(math.nan, 0.0, 1.0, 0)
        low, high = clopper_pearson(int(hits.sum()), len(hits))
        return cls(float(hits.mean()), low, high, len(hits))

    def to_json(self) -> dict[str, Any]:
        """As JSON values; the value of no inputs is null."""
        return asdict(self) | {"value": None if math.isnan(self.value) else self.value}


@dataclass(frozen=True)
class RocArea:
    """Area under the ROC curve with DeLong's 95 % interval, cut to [0, 1]; nan without positives or negatives."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """As JSON values."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def roc_area(negative: Float64, positive: Float64) -> RocArea:
    """P(statistic of a positive > that of a negative), ties counting one half.

    The interval is DeLong et al. 1988 (DOI 10.2307/2531595). It is empty where both are perfectly separated.

    Args:
        negative: Statistics of clean inputs [M].
        positive: Statistics of attacked inputs [N].
    """
    if not len(negative) or not len(positive):
        return RocArea(math.nan, math.nan, math.nan)
    below, above = np.sort(negative), np.sort(positive)
    # share of the others that a value beats, ties one half
    beaten = (np.searchsorted(below, positive, "left") + np.searchsorted(below, positive, "right")) / (2 * len(below))
    beats = 1 - (np.searchsorted(above, negative, "left") + np.searchsorted(above, negative, "right")) / (
        2 * len(above)
    )
    area = float(beaten.mean())
    variance = sum(float(shares.var(ddof=1)) / len(shares) for shares in (beaten, beats) if len(shares) > 1)
    spread = Z_95 * math.sqrt(variance)
    return RocArea(area, max(area - spread, 0.0), min(area + spread, 1.0))


def threshold_at(negative: Float64, false_alarm_rate: float) -> float:
    """The smallest threshold that at most this share of the negatives lies strictly above.

    Raises:
        ValueError: Without negatives, or unless 0 <= false_alarm_rate < 1.
    """
    if not len(negative) or not 0 <= false_alarm_rate < 1:
        raise ValueError(f"need negatives and 0 <= rate < 1, got {len(negative)} and {false_alarm_rate}")
    allowed = math.floor(false_alarm_rate * len(negative) + 1e-9)
    return float(np.sort(negative)[len(negative) - 1 - allowed])


def detected_at(negative: Float64, positive: Float64, false_alarm_rate: float) -> Share:
    """Share of the positives above the threshold of a false-alarm rate on these very negatives.

    The interval is that of the positives; that the threshold depends on the negatives drawn is not in it.
    """
    return Share.of(positive > threshold_at(negative, false_alarm_rate))


def detection_differences(
    first: tuple[Float64, Float64],
    second: tuple[Float64, Float64],
    false_alarm_rate: float,
    *,
    paired: bool,
    seed: int,
    draws: int = 1000,
) -> tuple[float, float, float]:
    """Detection of the first detector minus the second's at one false-alarm rate: difference, 95 % bootstrap interval.

    Clean inputs are drawn together for both, and so are attacked ones where both saw the same (`paired`), so the
    interval contains the threshold's uncertainty, too.

    Args:
        first: Its statistics of clean and of attacked inputs, [M] and [N].
        second: The other's, clean inputs the same.
        false_alarm_rate: On the clean inputs of each draw.
        paired: Whether the attacked inputs are the same.
        seed: Of the draws.
        draws: Bootstrap samples.
    """
    generator = np.random.default_rng(seed)
    clean, attacked, others = len(first[0]), len(first[1]), len(second[1])
    found = np.empty(draws)
    for i in range(draws):
        drawn = generator.integers(0, clean, clean)
        mine = generator.integers(0, attacked, attacked)
        theirs = mine if paired else generator.integers(0, others, others)
        found[i] = _detected(first[0][drawn], first[1][mine], false_alarm_rate) - _detected(
            second[0][drawn], second[1][theirs], false_alarm_rate
        )
    difference = _detected(*first, false_alarm_rate) - _detected(*second, false_alarm_rate)
    low, high = np.quantile(found, (0.025, 0.975)).tolist()
    return difference, low, high


def roc_points(negative: Float64, positive: Float64) -> Mapping[str, list[float]]:
    """The ROC curve: shares of negatives and positives strictly above each threshold, from none to all."""
    thresholds = np.unique(np.concatenate([negative, positive]))[::-1]
    above = [1 - np.searchsorted(np.sort(scores), thresholds, "right") / len(scores) for scores in (negative, positive)]
    return {
        "false_alarm_rate": [*above[0].tolist(), 1.0],
        "detection_rate": [*above[1].tolist(), 1.0],
    }


def _detected(negative: Float64, positive: Float64, false_alarm_rate: float) -> float:
    return float((positive > threshold_at(negative, false_alarm_rate)).mean())
