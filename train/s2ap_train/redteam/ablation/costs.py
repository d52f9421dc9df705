"""What a defence gains and costs: rows of the ablation, pair by pair, on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from s2ap_train.redteam.ablation.measured import MeasuredRow
from s2ap_train.redteam.ablation.names import BARE, CONFIDENCE, FULL, JURY, PRUNED, UNFLAGGED, UNPURIFIED, WIDER
from s2ap_train.redteam.rows import Comparison, Measure, PartCost
from s2ap_train.statistics.paired import paired_difference

__all__ = ["BASELINES", "IN_SHORT", "ORDER", "PAIRS", "comparisons", "part_costs"]

ORDER: tuple[tuple[str, Measure], ...] = (
    (PRUNED, "label right"),
    (CONFIDENCE, "right or flagged"),
    (WIDER, "label right"),
    (BARE, "label right"),
)
"""What a file must beat, and in which figure; the verdict names the first that it does not."""
BASELINES = (*(name for name, _ in ORDER), JURY)
"""Rows that the file is compared with in every figure."""
_SERVED = "the file as it is served"
PAIRS: tuple[tuple[str, Measure, str, str], ...] = (
    ("vote of the jury instead of its first juror", "label right", PRUNED, JURY),
    ("answer of the file instead of the vote of the jury", "clean accuracy", JURY, UNFLAGGED),
    ("answer of the file instead of the vote of the jury", "label right", JURY, UNFLAGGED),
    ("flags added to the answer", "label right", UNFLAGGED, _SERVED),
    ("flags added to the answer", "right or flagged", UNFLAGGED, _SERVED),
    ("least confident flagged, added to the robust classifier", "right or flagged", PRUNED, CONFIDENCE),
    ("purifier in the chain", "label right", UNPURIFIED, _SERVED),
    ("purifier in the chain", "right or flagged", UNPURIFIED, _SERVED),
    ("correction instead of rejection", "label right", FULL["reject"], FULL["correct"]),
    ("an answer that is kept instead of rejection", "label right", FULL["reject"], FULL["keep"]),
)
"""(what it is in words, which figure, the row before, the row after)."""
IN_SHORT = {PAIRS[0][:2], PAIRS[4][:2], PAIRS[7][:2]}
"""Those of a summary: what the vote, the flags and the purifier are worth."""


def part_costs(rows: Mapping[str, MeasuredRow], served: str) -> tuple[PartCost, ...]:
    """Every pair of PAIRS whose two rows were measured.

    Args:
        rows: By name.
        served: Name of the row that is the file as it is served.
    """
    known = {**rows, **({_SERVED: rows[served]} if served in rows else {})}
    return tuple(
        PartCost(part, measure, paired_difference(known[before].of(measure), known[after].of(measure)))
        for part, measure, before, after in PAIRS
        if before in known and after in known
    )


def comparisons(rows: Mapping[str, MeasuredRow], served: str) -> tuple[Comparison, ...]:
    """The served file against every one of BASELINES that was measured, in every figure; empty: it was not measured."""
    if served not in rows:
        return ()
    return tuple(
        Comparison(name, measure, paired_difference(rows[name].of(measure), rows[served].of(measure)))
        for name in BASELINES
        if name in rows
        for measure in get_args(Measure)
    )
