"""What bounds an evaluation: budgets that are none, and time."""

from __future__ import annotations

import math
import time

from s2ap_defend.errors import RecipeError

__all__ = ["check_budgets", "deadline"]


def deadline(minutes: float | None, share: float) -> float | None:
    """Time at which a share of a time limit is over; None without one."""
    return None if minutes is None else time.time() + 60.0 * minutes * share


def check_budgets(eps: float, l2: float, pixels: int, positions: int) -> None:
    """Refuse budgets that are none.

    Raises:
        RecipeError: With the first that is out of range.
    """
    if not 0.0 <= eps <= 1.0:
        raise RecipeError(f"eps is {eps}; it is an l_inf budget in [0, 1] pixels, 8/255 is {8 / 255:.4f}")
    if not l2 >= 0.0 or not math.isfinite(l2):
        raise RecipeError(f"l2 is {l2}; it is a length in pixels of [0, 1], from 0")
    if not 0 <= pixels <= positions:
        raise RecipeError(
            f"pixels is {pixels}; it counts positions that may change, from 0 to the {positions} there are"
        )
