"""Design of a test before anything is trained: exact error rates, expected members, and whether it can decide at all.

All members share two levels here, so a state of the test is (n, z): members asked, members that disagree. Everything
assumes independent votes. Votes of members that are trained on one data set are correlated, which leaves the expected
evidence as it is and widens its spread: real error rates are higher, and only calibration gives them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential.reachable import OperatingPoint, after_the_last_member, operating_points
from s2ap_defend.sequential.tables import FINAL_THRESHOLDS, SequentialTest, Truncation
from s2ap_defend.sequential.wald import binary_tables, ville_boundary, wald_boundaries, wald_increments
from s2ap_defend.types import Float64

Boundary = Literal["wald", "ville"]

MAX_MEMBERS = 2_000
LEAST_EVIDENCE = 1e-9
"""Nats of one vote below which two levels are taken as equal."""

UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True)
class Design:
    """A sequential test over members that share two levels of disagreement.

    Attributes:
        q0: Probability that a member's label differs from the classifier's on clean inputs.
        q1: The same on adversarial inputs; q0 < q1.
        alpha: False-alarm rate that the upper boundary is made for.
        beta: Miss rate that the lower boundary is made for.
        n_max: Members there are.
        truncation: Verdict on inputs that no boundary has decided after n_max members: 'sign' is 'adversarial' when
            L > 0, 'abstain' is no verdict.
        min_accept: Members that must be asked before 'clean' may be decided.
        boundary: The upper one: 'wald' is ln((1 - beta) / alpha), 'ville' ln(1 / alpha), whose rate holds at every
            stopping time. The lower one is Wald's, ln(beta / (1 - alpha)).

    Raises:
        RecipeError: If a number is out of its range.
    """

    q0: float
    q1: float
    alpha: float = 0.05
    beta: float = 0.05
    n_max: int = 24
    truncation: Truncation = "sign"
    min_accept: int = 1
    boundary: Boundary = "wald"

    def __post_init__(self) -> None:
        if not 0.0 < self.q0 < self.q1 < 1.0:
            raise RecipeError(
                f"q0 is {self.q0} and q1 is {self.q1}; expected 0 < q0 < q1 < 1: members disagree more often under "
                "attack than on clean inputs"
            )
        if not (self.alpha > 0.0 and self.beta > 0.0 and self.alpha + self.beta < 1.0):
            raise RecipeError(
                f"alpha is {self.alpha} and beta is {self.beta}; expected two positive rates that sum to less than 1"
            )
        for name, value in (("n_max", self.n_max), ("min_accept", self.min_accept)):
            if not 1 <= value <= MAX_MEMBERS:
                raise RecipeError(f"{name} is {value}; expected 1 to {MAX_MEMBERS} members")
        if self.truncation not in get_args(Truncation) or self.boundary not in get_args(Boundary):
            raise RecipeError(
                f"truncation is {self.truncation!r} and boundary {self.boundary!r}; expected one of "
                f"{', '.join(get_args(Truncation))} and one of {', '.join(get_args(Boundary))}"
            )
        if not all(math.isfinite(boundary) for boundary in self.boundaries):
            raise RecipeError(
                f"alpha is {self.alpha} and beta is {self.beta}; expected rates that are not as good as zero"
            )
        agrees, disagrees = self.increments
        if not agrees < -LEAST_EVIDENCE < LEAST_EVIDENCE < disagrees:
            raise RecipeError(f"q0 {self.q0} and q1 {self.q1} are too close to tell apart; choose a larger difference")

    @cached_property
    def increments(self) -> tuple[float, float]:
        """(v, u): what an agreeing and a disagreeing member add to L, in nats."""
        return wald_increments(self.q0, self.q1)

    @cached_property
    def boundaries(self) -> tuple[float, float]:
        """(B, A): 'clean' when L <= B, 'adversarial' when L >= A, in nats."""
        lower, upper = wald_boundaries(self.alpha, self.beta)
        return lower, ville_boundary(self.alpha) if self.boundary == "ville" else upper

    def test(self) -> SequentialTest:
        """The tables of this design, without a vote."""
        edges, increments = binary_tables(self.q0, self.q1, members=self.n_max)
        lower, upper = self.boundaries
        may_accept = np.arange(1, self.n_max + 1) >= self.min_accept
        return SequentialTest(
            evidence="margin",
            edges=edges,
            increments=increments,
            lower=np.where(may_accept, lower, -math.inf),
            upper=np.full(self.n_max, upper),
            final_threshold=FINAL_THRESHOLDS[self.truncation],
            waves=(self.n_max,),
            vote_weights=np.zeros(self.n_max),
            answer="accurate",
            correction="reject",
            undecided_abstains=self.truncation == "abstain",
        )


@dataclass(frozen=True)
class Shortest:
    """Members that a design needs at least.

    Attributes:
        clean: Agreeing members that decide 'clean' when all agree, min_accept included: ceil(B / v).
        adversarial: Disagreeing members that decide 'adversarial' when all disagree: ceil(A / u).
    """

    clean: int
    adversarial: int

    @property
    def n_max(self) -> int:
        """Smallest number of members with which both verdicts are possible."""
        return max(self.clean, self.adversarial)


def shortest(design: Design) -> Shortest:
    """Smallest numbers of unanimous members that decide; the design's own n_max has no part in it."""
    agrees, disagrees = design.increments
    lower, upper = design.boundaries
    return Shortest(clean=max(_steps(agrees, lower), design.min_accept), adversarial=_steps(disagrees, upper))


def check_feasible(design: Design) -> None:
    """Check that the design can decide 'clean' and 'adversarial' before its members run out.

    Raises:
        RecipeError: If a boundary cannot be reached; it names the smallest n_max that reaches both.
    """
    needed = shortest(design)
    out_of_reach = [
        f"{verdict!r} takes {members} {votes} members at least"
        for verdict, members, votes in (
            ("clean", needed.clean, "agreeing"),
            ("adversarial", needed.adversarial, "disagreeing"),
        )
        if members > design.n_max
    ]
    if out_of_reach:
        raise RecipeError(
            f"this design can never decide: {' and '.join(out_of_reach)}, n_max is {design.n_max}; "
            f"the smallest n_max that can is {needed.n_max}"
        )


def operating_characteristic(design: Design, p: float) -> OperatingPoint:
    """Operating point of a design where members disagree independently with probability p.

    Dynamic programming over (n, z), O(n_max^2) at most. A cell counts as decided as `run_sequential_test` decides it.
    Its L is a sum of n rounded additions, so it depends on the order of the votes in the last bits, by at most
    n roundings of sum |increments| (Higham 2002, section 4.2); where a reachable cell comes that close to a boundary or
    to the threshold of truncation, the sums themselves are the states instead (`operating_points`).

    Raises:
        RecipeError: Unless 0 <= p <= 1.
    """
    return operating_characteristics(design, [p])[0]


def operating_characteristics(design: Design, rates: Sequence[float]) -> list[OperatingPoint]:
    """`operating_characteristic` at several probabilities of disagreement, sharing what can be shared."""
    for p in rates:
        if not 0.0 <= p <= 1.0:
            raise RecipeError(f"the probability of disagreement is {p}; expected 0 to 1")
    points = [_over_cells(design, p) for p in rates]
    found = [point for point in points if point is not None]
    if len(found) == len(rates):
        return found
    votes = np.array([[(1.0 - p, p)] * design.n_max for p in rates])  # [C, n, 2]
    return operating_points(design.test(), votes)


def _over_cells(design: Design, p: float) -> OperatingPoint | None:
    """The operating point, or None where a cell is too close to a boundary to be decided for all orders at once."""
    agrees, disagrees = design.increments
    lower, upper = design.boundaries
    masses, first = np.ones(1), 0  # probability of z = first, first + 1, ... and undecided after n members
    ratios = np.zeros(1)
    roundings = np.zeros(1)
    adversarial = clean = asked = 0.0
    for n in range(1, design.n_max + 1):
        asked += float(masses.sum())
        masses = np.append(masses * (1.0 - p), 0.0) + np.append(0.0, masses * p)
        z = np.arange(first, first + len(masses))
        ratios = z * disagrees + (n - z) * agrees
        roundings = 1.1 * (n + 2) * UNIT_ROUNDOFF * (z * disagrees - (n - z) * agrees)
        accepts = n >= design.min_accept
        if _near(ratios, upper, roundings, masses) or (accepts and _near(ratios, lower, roundings, masses)):
            return None
        low = int(np.count_nonzero(ratios <= lower)) if accepts else 0
        high = int(np.count_nonzero(ratios < upper))
        clean += float(masses[:low].sum())
        adversarial += float(masses[high:].sum())
        masses, ratios, roundings, first = masses[low:high], ratios[low:high], roundings[low:high], first + low
        if not len(masses):
            break
    if _near(ratios, FINAL_THRESHOLDS[design.truncation], roundings, masses):
        return None
    test = design.test()
    return after_the_last_member(test, ratios, masses, adversarial=adversarial, clean=clean, mean_members=asked)


def _near(ratios: Float64, boundary: float, roundings: Float64, masses: Float64) -> bool:
    return bool((masses[np.abs(ratios - boundary) <= roundings] > 0.0).any())


def _steps(increment: float, boundary: float) -> int:
    """Additions of one increment until the boundary is reached, as the loop adds them."""
    near = math.ceil(boundary / increment)
    if near > MAX_MEMBERS:
        return near
    sums = np.cumsum(np.full(near + 1, increment))
    return int(np.argmax(sums >= boundary if increment > 0.0 else sums <= boundary)) + 1
