"""What is reported of an attack, and how it is counted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2ap_defend.types import Bool, Int64
from s2ap_train.statistics.outcome import Outcome
from s2ap_train.statistics.paired import CONFIDENCE


@dataclass(frozen=True)
class CleanFigures:
    """Shares of the clean images.

    Attributes:
        accuracy: Answered, and the final label is right, flagged or not.
        flagged: False alarms and rightly flagged mistakes together.
        members_used: Mean number of members asked.
        attack_success: Answered, not flagged and wrong, before any attack.
        abstained: Not answered.
    """

    accuracy: float
    flagged: float
    members_used: float
    attack_success: float
    abstained: float


@dataclass(frozen=True)
class AttackFigures:
    """Shares of all attacked images, those that were misclassified before the attack included.

    Attributes:
        attack_success: Answered, not flagged, and the final label is wrong.
        attack_success_interval: Its 95 % Clopper-Pearson interval.
        flagged: Flagged.
        corrected: Flagged and answered, and the final label is the true one.
        label_accuracy: Answered, and the final label is right; a flagged image with a wrong label counts as wrong.
        members_used: Mean number of members asked.
        abstained: Not answered.
        seconds: Time that the attack took.
        configuration: Its settings and, of an attack of several descents, which broke how many images.
    """

    attack_success: float
    attack_success_interval: tuple[float, float]
    flagged: float
    corrected: float
    label_accuracy: float
    members_used: float
    abstained: float
    seconds: float
    configuration: Mapping[str, Any]


@dataclass(frozen=True)
class Headlines:
    """The two figures that count, side by side: what all attacks together leave of the same images.

    Attributes:
        label_accuracy: Share whose final label was right under every attack; to be flagged, or not answered, does not
            count.
        label_accuracy_interval: Its 95 % Clopper-Pearson interval.
        robust_accuracy: Share of images that no attack broke: always flagged, not answered, or right.
        robust_accuracy_interval: Its 95 % Clopper-Pearson interval.
    """

    label_accuracy: float
    label_accuracy_interval: tuple[float, float]
    robust_accuracy: float
    robust_accuracy_interval: tuple[float, float]

    @classmethod
    def of(cls, label_right: Bool, kept: Bool) -> "Headlines":
        """From images whose label was right under every attack [N], and those that no attack broke [N]."""
        return cls(
            _share(label_right),
            clopper_pearson(int(label_right.sum()), len(label_right)),
            _share(kept),
            clopper_pearson(int(kept.sum()), len(kept)),
        )


@dataclass(frozen=True)
class WorstCase(Headlines):
    """Per image the worst of the clean input and all attacks.

    Attributes:
        broken_only_by: How many images one attack alone broke. Square here means that the gradient attack is weak.
    """

    broken_only_by: Mapping[str, int]


def clopper_pearson(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact confidence interval of a binomial share (Clopper and Pearson 1934).

    Raises:
        ValueError: Unless 0 <= successes <= trials and trials is positive.
    """
    from scipy import stats  # type: ignore[import-untyped]

    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"an interval needs 0 <= successes <= trials, trials > 0; got {successes} of {trials}")
    tail = (1.0 - confidence) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def clean_figures(outcome: Outcome, labels: Int64) -> CleanFigures:
    """Figures of clean images."""
    return CleanFigures(
        accuracy=_share(outcome.right(labels)),
        flagged=_share(outcome.flagged),
        members_used=float(outcome.members_used.mean()),
        attack_success=_share(outcome.success),
        abstained=_share(outcome.abstained),
    )


def attack_figures(
    outcome: Outcome, labels: Int64, *, seconds: float, configuration: Mapping[str, Any]
) -> AttackFigures:
    """Figures of one attack's images."""
    return AttackFigures(
        attack_success=_share(outcome.success),
        attack_success_interval=clopper_pearson(int(outcome.success.sum()), len(labels)),
        flagged=_share(outcome.flagged),
        corrected=_share(outcome.flagged & outcome.right(labels)),
        label_accuracy=_share(outcome.right(labels)),
        members_used=float(outcome.members_used.mean()),
        abstained=_share(outcome.abstained),
        seconds=seconds,
        configuration=configuration,
    )


def worst_case(outcomes: Mapping[str, Outcome], labels: Int64) -> WorstCase:
    """Worst case per image over outcomes by name, the clean one among them."""
    broken = np.stack([outcome.success for outcome in outcomes.values()])  # [attacks, N]
    wrong = np.stack([~outcome.right(labels) for outcome in outcomes.values()])
    alone = broken & (broken.sum(axis=0) == 1)
    both = Headlines.of(np.asarray(~wrong.any(axis=0)), np.asarray(~broken.any(axis=0)))
    return WorstCase(
        **vars(both), broken_only_by={name: int(row.sum()) for name, row in zip(outcomes, alone, strict=True)}
    )


def _share(rows: Bool | np.bool) -> float:
    return float(np.mean(rows))
