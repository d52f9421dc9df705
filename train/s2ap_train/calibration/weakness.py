"""What makes a file weaker than its settings say: refused, or said and lived with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest_fields import WeakPart

__all__ = ["OnWeakness", "Weakness", "refuse"]


@dataclass(frozen=True)
class Weakness:
    """One thing that training or calibration did not give.

    Attributes:
        part: What is weak.
        found: What was found and expected, without a full stop.
        instead: What the file does instead, a clause.
        cure: What to do about it.
    """

    part: WeakPart
    found: str
    instead: str
    cure: str

    @classmethod
    def of(cls, error: RecipeError, part: WeakPart, instead: str) -> Weakness:
        """What an error says, whose last clause is what to do."""
        found, _, cure = str(error).rpartition("; ")
        return cls(part, found, instead, cure)

    @property
    def in_words(self) -> str:
        """One sentence for the user of the file."""
        return f"{self.found}, so {self.instead}; {self.cure}"


OnWeakness = Callable[[Weakness], None]
"""Is called with every weakness, and raises where none is allowed."""


def refuse(weakness: Weakness) -> None:
    """Allow no weakness.

    Raises:
        RecipeError: With what was found and what to do.
    """
    raise RecipeError(f"{weakness.found}; {weakness.cure}")
