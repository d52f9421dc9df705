"""The value of `harden --max-cost`: so many times the classifier, in time or in operations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from s2ap_defend.decision_record import CostIn

__all__ = ["CostLimit"]

_OPERATIONS = "flops"


@dataclass(frozen=True)
class CostLimit:
    """The most that a clean image may cost, as a multiple of the classifier's.

    Attributes:
        times: The multiple.
        cost_in: What is counted.
    """

    times: float
    cost_in: CostIn

    @classmethod
    def parse(cls, text: str) -> CostLimit:
        """'3' is three times the classifier's time, '3flops' three times its operations.

        Raises:
            ValueError: Unless it is a number above 1.
        """
        number = text.removesuffix(_OPERATIONS)
        times = float(number)
        if not 1.0 < times < math.inf:
            raise ValueError(text)
        return cls(times, "time" if number == text else "operations")

    @property
    def keys(self) -> dict[str, object]:
        """The keys of a recipe's decision."""
        return {"max_cost": self.times, "cost_in": self.cost_in}
