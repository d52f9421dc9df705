"""A row of the ablation, image by image."""

from __future__ import annotations

from dataclasses import dataclass

from s2ap_defend.types import Bool
from s2ap_train.redteam.rows import AblationRow, Measure

__all__ = ["MeasuredRow"]


@dataclass(frozen=True)
class MeasuredRow:
    """A row and, image by image, what every attack on any row left of it.

    Attributes:
        row: For the table.
        clean_right: Answered and right without attack [N].
        label_right: Answered and right, flagged or not, under all attacks [N].
        kept: Right, flagged or not answered, under all attacks [N].
    """

    row: AblationRow
    clean_right: Bool
    label_right: Bool
    kept: Bool

    def of(self, measure: Measure) -> Bool:
        """Images that count for a figure [N]."""
        return {"clean accuracy": self.clean_right, "label right": self.label_right, "right or flagged": self.kept}[
            measure
        ]
