"""Wald's approximations and bounds for a design, which are printed next to the exact numbers.

They let L stop exactly on a boundary and ignore truncation and min_accept. A real L jumps over the boundary, so error
rates are usually overestimated and the members needed underestimated (Wald 1945, sections 3 and 4).
"""

import math

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential.design import Design

HALVINGS = 200
NO_DRIFT = 1e-7
"""Exponents below this are taken as zero: the limits are then closer than what cancellation leaves of the formulas."""


def wald_exponent(design: Design, p: float) -> float:
    """The solution h of p exp(h u) + (1 - p) exp(h v) = 1 other than zero; zero where L has no drift.

    It is 1 at p = q0 and -1 at p = q1. The left side minus 1 is convex with a zero at h = 0, so the other zero lies
    between its minimum and the point where one of its two terms alone reaches 1; it is found by bisection there.

    Raises:
        RecipeError: Unless 0 < p < 1; at 0 and 1 there is no solution.
    """
    if not 0.0 < p < 1.0:
        raise RecipeError(f"the probability of disagreement is {p}; expected a number between 0 and 1")
    agrees, disagrees = design.increments

    def excess(h: float) -> float:
        return p * math.expm1(h * disagrees) + (1.0 - p) * math.expm1(h * agrees)

    drift = p * disagrees + (1.0 - p) * agrees
    if drift == 0.0:
        return 0.0
    inner = (math.log1p(-p) + math.log(-agrees) - math.log(p) - math.log(disagrees)) / (disagrees - agrees)
    outer = -math.log(p) / disagrees if drift < 0.0 else -math.log1p(-p) / agrees
    largest = 700.0 / max(disagrees, -agrees)  # exp() stays finite; only rates below 1e-304 have an exponent beyond
    outer = math.copysign(min(abs(outer), largest), outer)
    for _ in range(HALVINGS):
        middle = 0.5 * (inner + outer)
        if excess(middle) < 0.0:
            inner = middle
        else:
            outer = middle
    return 0.5 * (inner + outer)


def wald_acceptance(design: Design, p: float) -> float:
    """Wald's operating characteristic: the probability of 'clean' where members disagree with probability p.

    OC(p) = (exp(hA) - 1) / (exp(hA) - exp(hB)) with h of `wald_exponent`; A / (A - B) where L has no drift.
    """
    lower, upper = design.boundaries
    if p in {0.0, 1.0}:
        return 1.0 - p
    h = wald_exponent(design, p)
    if abs(h) < NO_DRIFT:
        return upper / (upper - lower)
    if h > 0.0:
        return math.expm1(-h * upper) / math.expm1(-h * (upper - lower))
    return math.exp(-h * lower) * math.expm1(h * upper) / math.expm1(h * (upper - lower))


def wald_members(design: Design, p: float) -> float:
    """Wald's average sample number where members disagree with probability p, without truncation.

    [OC B + (1 - OC) A] / (p u + (1 - p) v); -A B / (p u^2 + (1 - p) v^2) where L has no drift.
    """
    agrees, disagrees = design.increments
    lower, upper = design.boundaries
    drift = p * disagrees + (1.0 - p) * agrees
    if 0.0 < p < 1.0 and abs(wald_exponent(design, p)) < NO_DRIFT:
        return -upper * lower / (p * disagrees**2 + (1.0 - p) * agrees**2)
    accepted = wald_acceptance(design, p)
    return (accepted * lower + (1.0 - accepted) * upper) / drift


def wald_bounds(design: Design) -> tuple[float, float]:
    """Bounds (alpha', beta') on crossing the wrong boundary: exp(-A) and exp(B).

    That is alpha / (1 - beta) for boundary 'wald' and alpha for 'ville', and beta / (1 - alpha) for both (Wald 1945,
    section 3). They hold for independent votes, at any n_max and min_accept, but not for what truncation decides.
    """
    lower, upper = design.boundaries
    return math.exp(-upper), math.exp(lower)
