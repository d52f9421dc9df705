"""What a defence adds or costs: rows of the ablation, pair by pair, on the same images."""

from __future__ import annotations

from collections.abc import Mapping

from s2ap_train.redteam.ablation.ablation import MeasuredRow
from s2ap_train.redteam.ablation.ablation_rows import ADVERSARIAL, BARE, DETECTOR, FULL, PRUNED, PURIFIER, VOTE, WIDER
from s2ap_train.redteam.results import PartCost
from s2ap_train.statistics.paired import PairedDifference, paired_difference

__all__ = ["IN_SHORT", "LABELS", "PAIRS", "ROBUST", "against_pruned", "part_costs"]

ROBUST, LABELS = "robust accuracy", "label accuracy"
PAIRS = (
    ("purifier in front of the classifier", ROBUST, BARE, PURIFIER),
    ("detection added to the classifier", ROBUST, BARE, DETECTOR),
    ("vote of the members instead of the classifier", ROBUST, BARE, VOTE),
    ("purifier in front of classifier and detector", ROBUST, DETECTOR, FULL[False]),
    ("purifier in front of classifier and detector", LABELS, DETECTOR, FULL[False]),
    ("full defence instead of its S2AP-pruned classifier", ROBUST, PRUNED, FULL[True]),
    ("full defence instead of its S2AP-pruned classifier", LABELS, PRUNED, FULL[True]),
    ("full defence instead of an adversarially trained classifier", ROBUST, ADVERSARIAL, FULL[True]),
    ("full defence instead of a vote", LABELS, VOTE, FULL[True]),
    ("full defence instead of a wider classifier of the same compute", ROBUST, WIDER, FULL[True]),
    ("correction instead of rejection", LABELS, FULL[False], FULL[True]),
)
"""(what it is in words, which figure, the row before, the row after)."""
IN_SHORT = {(PAIRS[0][0], ROBUST), (PAIRS[3][0], ROBUST), (PAIRS[6][0], LABELS)}
"""Those of a summary: what the purifier adds, alone and in the chain, and labels beside the pruned classifier's."""


def part_costs(rows: Mapping[str, MeasuredRow]) -> tuple[PartCost, ...]:
    """Every pair of PAIRS whose two rows were measured."""
    return tuple(
        PartCost(part, measure, _difference(measure, rows[before], rows[after]))
        for part, measure, before, after in PAIRS
        if before in rows and after in rows
    )


def against_pruned(rows: Mapping[str, MeasuredRow], served: str) -> PairedDifference | None:
    """The served file against its own S2AP-pruned classifier, robust accuracy; None: one of them was not measured."""
    if PRUNED not in rows or served not in rows:
        return None
    return _difference(ROBUST, rows[PRUNED], rows[served])


def _difference(measure: str, before: MeasuredRow, after: MeasuredRow) -> PairedDifference:
    if measure == LABELS:
        return paired_difference(before.label_right, after.label_right)
    return paired_difference(before.right, after.right)
