"""What an attacker can want of a defence, and how far an answer is from it."""

from typing import Literal

import numpy as np

from s2ap_defend.types import Bool, Float64, Int64
from s2ap_train.adaptive.systems import RIGHT
from s2ap_train.statistics.outcome import Outcome

__all__ = ["Goal", "reached", "scores"]

Goal = Literal["mislead", "wrong label", "false alarm", "slow down"]
"""What the attacker wants: answered, not flagged and wrong | answered and the final label wrong, flagged or not | a
flag on an image whose label stays right | as many members asked as possible."""


def scores(goal: Goal, outcome: Outcome, labels: Int64) -> Float64:
    """How far the attacker is from its goal [N]: negative exactly where it is reached. Larger is further away.

    'mislead': the outcome's own score. 'wrong label': the margin by which the final label is right, whoever gave it.
    'false alarm': RIGHT less the evidence in nats, while the label stays right. 'slow down': members that were not
    asked.

    Args:
        goal: The goal.
        outcome: What the system answered.
        labels: True labels [N].

    Raises:
        ValueError: If the outcome does not tell what the goal is judged by.
    """
    match goal:
        case "mislead":
            return outcome.score
        case "wrong label":
            wrong = ~outcome.abstained & (outcome.label != labels)
            left = outcome.score if outcome.margin is None else outcome.margin
            return np.where(wrong, -1.0, np.maximum(left, 0.0))
        case "false alarm":
            if outcome.evidence is None:
                raise ValueError("a false alarm is judged by the evidence; the outcome does not tell it")
            right = outcome.label == labels
            gap = RIGHT - np.clip(outcome.evidence, -RIGHT / 2, RIGHT / 2)
            return np.where(right, np.where(outcome.flagged, -1.0, gap), 2.0 * RIGHT)
        case "slow down":
            if outcome.not_asked is None:
                raise ValueError("delay is judged by the members that were not asked; the outcome does not tell them")
            return outcome.not_asked.astype(np.float64) - 0.5


def reached(goal: Goal, outcome: Outcome, labels: Int64, right_before: Bool | None = None) -> Bool:
    """Images where the attacker reached its goal [N].

    Args:
        goal: The goal; 'slow down' is reached where every member that the test can ask was asked.
        outcome: What the system answered.
        labels: True labels [N].
        right_before: Images that are answered rightly, and not flagged, before the attack: an alarm on others is none
            that an attacker had to raise. None: all.
    """
    hit = np.asarray(scores(goal, outcome, labels) < 0.0)
    return hit & right_before if goal == "false alarm" and right_before is not None else hit
