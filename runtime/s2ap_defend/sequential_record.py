"""What a manifest says of the sequential test: its tables, and how they were calibrated."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from s2ap_defend.manifest_fields import Amount, Count, ManifestTable, Positive, Rate
from s2ap_defend.sequential import FINAL_THRESHOLDS, Answer, Correction, SequentialTest, Signal, SignalName, Truncation

__all__ = ["CalibrationRecord", "SignalTable", "TestTables"]


class CalibrationRecord(ManifestTable):
    """How the boundaries were calibrated, and what that promises.

    Attributes:
        on: Which held-out clean inputs counted: those that the classifier gets right, or all.
        samples: How many they were.
        expected_false_alarm_rate: Of a new input exchangeable with them, averaged over calibration samples.
        false_alarm_bound: Upper 95 % bound of the false-alarm rate, given this calibration sample.
        correlation: Mean pairwise phi of the members' disagreements on clean inputs.
        effective_members: Independent members that would say as much as these.
        reference_ratios: Ascending final log-likelihood ratios of all held-out clean inputs, right or wrong, as served:
            what the drift monitor compares with. May be empty.
    """

    on: Literal["correct", "all"]
    samples: Count
    expected_false_alarm_rate: Rate | None
    false_alarm_bound: Rate | None
    correlation: Annotated[float, Field(ge=-1.0, le=1.0)] | None
    effective_members: Amount | None
    reference_ratios: tuple[float, ...]

    @model_validator(mode="after")
    def _ascends(self) -> "CalibrationRecord":
        if any(later < earlier for earlier, later in pairwise(self.reference_ratios)):
            raise ValueError("reference_ratios must ascend")
        return self


class SignalTable(ManifestTable):
    """Bins and increments of evidence that no member is asked for, in nats."""

    name: SignalName
    edges: tuple[float, ...]
    increments: tuple[float, ...]


class TestTables(ManifestTable):
    """Numbers of the sequential test; `null` in a boundary means that it is never crossed."""

    __test__ = False  # not a pytest class

    kind: str
    evidence: Literal["margin", "surprise"]
    edges: tuple[tuple[float, ...], ...]
    increments: tuple[tuple[float, ...], ...]
    lower: tuple[float | None, ...]
    upper: tuple[float | None, ...]
    truncation: Truncation
    correction: Correction
    curtailed: bool
    opening: Positive
    await_vote: bool
    signals: tuple[SignalTable, ...]
    waves: tuple[Positive, ...]
    alpha: Rate
    beta: Rate
    calibration: CalibrationRecord

    def to_test(
        self, vote_weights: Sequence[float], *, answer: Answer, jury_share: float, amplification: float
    ) -> SequentialTest:
        """Return the tables as arrays, as the numpy reference takes them.

        Args:
            vote_weights: Of the members' votes [n].
            answer: Who gives the label.
            jury_share: Of the mix.
            amplification: Of the mix.

        Raises:
            ValueError: If they contradict each other.
        """
        return SequentialTest(
            evidence=self.evidence,
            edges=np.array(self.edges, dtype=np.float32),
            increments=np.array(self.increments, dtype=np.float64),
            lower=np.array([-math.inf if value is None else value for value in self.lower]),
            upper=np.array([math.inf if value is None else value for value in self.upper]),
            final_threshold=FINAL_THRESHOLDS[self.truncation],
            waves=self.waves,
            vote_weights=np.array(vote_weights, dtype=np.float64),
            answer=answer,
            jury_share=jury_share,
            amplification=amplification,
            opening=self.opening,
            await_vote=self.await_vote,
            signals=tuple(
                Signal(one.name, np.array(one.edges, dtype=np.float32), np.array(one.increments, dtype=np.float64))
                for one in self.signals
            ),
            correction=self.correction,
            curtail=self.curtailed,
            undecided_abstains=self.truncation == "abstain",
        )
