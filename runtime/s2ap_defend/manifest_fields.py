"""What the tables of a manifest have in common: they are frozen, know their keys, and hold no infinite number."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ROUNDING",
    "Amount",
    "Count",
    "ManifestTable",
    "Positive",
    "Rate",
    "Sha256",
    "WeakPart",
    "WeaknessRecord",
    "check_accuracies",
]

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Amount = Annotated[float, Field(ge=0.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
WeakPart = Literal["members", "evidence", "boundary", "answer", "purifier", "classifier"]
"""What of a file can be weaker, or measured by weaker attacks, than it was meant to be."""

ROUNDING = 1e-9
"""Shares of at most millions of images are this exact in float64."""


class ManifestTable(BaseModel):
    """A table of the manifest; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WeaknessRecord(ManifestTable):
    """What a file is weaker in than its recipe asked for, one sentence for people.

    Attributes:
        part: What of the file it is about.
        text: What was found, what the file does instead, and what to do.
    """

    part: WeakPart
    text: str


def check_accuracies(label_accuracy: float, robust_accuracy: float) -> None:
    """Check that labels are right no more often than they are right or flagged.

    Raises:
        ValueError: If they are.
    """
    if label_accuracy > robust_accuracy + ROUNDING:
        raise ValueError(
            f"label_accuracy {label_accuracy} exceeds robust_accuracy {robust_accuracy}, which counts right labels too"
        )
