"""Rows of less and more defence as an evaluation reports them, and the file against each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from s2ap_train.statistics.figures import Headlines
from s2ap_train.statistics.paired import PairedDifference

__all__ = ["AblationRow", "Comparison", "Headline", "Measure", "PartCost", "Requirement", "effect_of"]

Headline = Literal["label right", "right or flagged"]
"""Which of the two figures: the final label is right under every attack, or it is right, flagged or not given."""
Measure = Literal["clean accuracy", "label right", "right or flagged"]
"""The same, or answered and right without attack."""


@dataclass(frozen=True)
class PartCost:
    """What one part of the chain adds or costs, on the same images.

    Attributes:
        part: In words, such as 'purifier in front of the classifier'.
        measure: Of which figure.
        effect: After minus before.
    """

    part: str
    measure: Measure
    effect: PairedDifference


@dataclass(frozen=True)
class Comparison:
    """The file against something simpler, on the same images.

    Attributes:
        baseline: Name of its row in the ablation.
        measure: In which figure.
        effect: The file minus the baseline.
    """

    baseline: str
    measure: Measure
    effect: PairedDifference


@dataclass(frozen=True)
class Requirement:
    """One line of what must hold of a file.

    Attributes:
        line: What must hold, in words.
        holds: Whether it does; None: these images do not decide it.
        found: The measured values that decided.
        said: The same in words.
    """

    line: str
    holds: bool | None
    found: Mapping[str, float]
    said: str


@dataclass(frozen=True)
class AblationRow:
    """One chain, less defended or otherwise, under attacks that know it.

    Attributes:
        name: What is attacked.
        clean_accuracy: Answered and right, without attack.
        clean_flagged: Clean images flagged.
        oblivious_accuracy: Not broken by PGD made on the bare classifier of this row.
        worst_case: What is left under every attack that knows this row, and all that was found for other rows.
        flagged: Images flagged under the adaptive attack.
        members_used: Members asked for a clean image.
        descents: Gradient descents on an image that resisted them all; of the served file and the bare classifier
            without those of the other attacks of the evaluation, which they faced as well.
        steps: Gradient steps of one descent, the longest.
        cost: Floating-point operations of one clean image, as a multiple of the file's classifier alone.
        milliseconds: One clean image, alone, on one thread of ONNX Runtime; None: not measured.
        note: What a reader must know of it; empty: nothing.
    """

    name: str
    clean_accuracy: float
    clean_flagged: float
    oblivious_accuracy: float
    worst_case: Headlines
    flagged: float
    members_used: float
    descents: int
    steps: int
    cost: float
    milliseconds: float | None
    note: str = ""


def effect_of(comparisons: Sequence[Comparison], baseline: str, measure: Measure) -> PairedDifference | None:
    """The file minus a baseline in one figure; None: it was not measured."""
    pairs = (one for one in comparisons if (one.baseline, one.measure) == (baseline, measure))
    return next((one.effect for one in pairs), None)
