"""The tables of a sequential test.

Members are asked in a fixed order. Member i's float32 score falls into one of K bins (the number of its edges that
are <= the score), `increments[i, bin]` is added to the log-likelihood ratio L in float64, and the boundaries are
tested after every member: adversarial when L >= upper[i], else clean when L <= lower[i]. Wald's test, weighted
members, graded evidence and calibrated boundaries differ only in these numbers, so one graph and one loop serve all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np

from s2ap_defend.types import Bool, Float32, Float64

Evidence = Literal["margin", "surprise"]
Truncation = Literal["sign", "clean", "adversarial", "abstain"]
"""Verdict on inputs that no boundary has decided after all members: 'sign' is 'adversarial' when L > 0."""

FINAL_THRESHOLDS: Mapping[Truncation, float] = MappingProxyType(
    {"sign": 0.0, "clean": math.inf, "adversarial": -math.inf, "abstain": math.inf}
)
"""The `final_threshold` of each truncation."""


@dataclass(frozen=True)
class SequentialTest:
    """Tables of a sequential test over n members with K evidence bins.

    Attributes:
        evidence: Member score, in nats: 'margin' is max_k log p_k - log p(base label), 'surprise' is
            -log p(base label).
        edges: Ascending bin edges [n, K - 1]; a score equal to an edge falls into the upper bin.
        increments: Log-likelihood increments [n, K], in nats; positive speaks for 'adversarial'.
        lower: Clean boundary after each member [n]; -inf where 'clean' may not be decided.
        upper: Adversarial boundary after each member [n]; +inf where 'adversarial' may not be decided.
        final_threshold: Rule for inputs undecided after all members: adversarial when L exceeds it.
        vote_members: A flagged input goes on until this many members have voted on its label.
        waves: Sizes of the groups in which members are evaluated; they change speed, never a result.
        base_vote_weights: Soft veto, M weights in [0, 1]: in the correction of an input that was flagged with L, a
            vote for the base label weighs `base_vote_weights[number of base_vote_edges <= L]`, any other vote 1.
        base_vote_edges: Ascending, finite edges [M - 1] of L, in nats.
        correct: Whether a flagged input gets the members' label; otherwise it is rejected: no member is asked for a
            vote, the base label stays and the input abstains.
        curtail: Whether the vote on a flagged input ends as soon as no remaining vote can change or tie its winner.
            That saves members and never changes a label.
        undecided_abstains: Whether an input undecided after all members abstains, neither clean nor adversarial;
            final_threshold must be +inf then.

    Raises:
        ValueError: If the tables contradict each other.
    """

    evidence: Evidence
    edges: Float32
    increments: Float64
    lower: Float64
    upper: Float64
    final_threshold: float
    vote_members: int
    waves: tuple[int, ...]
    base_vote_weights: Float64 = field(default_factory=lambda: np.ones(1))
    base_vote_edges: Float64 = field(default_factory=lambda: np.empty(0))
    correct: bool = True
    curtail: bool = True
    undecided_abstains: bool = False

    def __post_init__(self) -> None:
        members, bins = self.increments.shape
        if members < 1 or bins < 2:
            raise ValueError(f"a sequential test needs members and two bins or more, got increments {members}x{bins}")
        if self.edges.shape != (members, bins - 1) or self.edges.dtype != np.float32:
            raise ValueError(f"edges must be float32 {(members, bins - 1)}, got {self.edges.dtype} {self.edges.shape}")
        if self.lower.shape != (members,) or self.upper.shape != (members,):
            raise ValueError(f"lower and upper need {members} entries, got {self.lower.shape} and {self.upper.shape}")
        if not np.isfinite(self.increments).all() or np.isnan(self.edges).any():
            raise ValueError("increments must be finite and edges must be numbers")
        if np.isnan(self.lower).any() or np.isnan(self.upper).any() or (self.lower >= self.upper).any():
            raise ValueError("every lower boundary must lie below its upper boundary")
        if (np.diff(self.edges, axis=1) < 0).any():
            raise ValueError("edges must ascend within each member")
        if sum(self.waves) != members or min(self.waves, default=0) < 1:
            raise ValueError(f"waves {self.waves} must be positive and sum to {members} members")
        if not 0 <= self.vote_members <= members:
            raise ValueError(f"vote_members must be in 0..{members}, got {self.vote_members}")
        if math.isnan(self.final_threshold):
            raise ValueError("final_threshold must be a number")
        if self.undecided_abstains and self.final_threshold != math.inf:
            raise ValueError(
                f"final_threshold is {self.final_threshold} although undecided inputs abstain; "
                "set it to inf, or undecided_abstains to False"
            )
        self._check_base_votes()

    @property
    def members(self) -> int:
        """Number of members n."""
        return len(self.increments)

    @property
    def closed(self) -> Bool:
        """Members after which nothing is left undecided [n]: the clean boundary is the float below the alarm one."""
        return np.asarray(self.lower == np.nextafter(self.upper, -math.inf))

    def _check_base_votes(self) -> None:
        weights, edges = self.base_vote_weights, self.base_vote_edges
        if weights.ndim != 1 or edges.ndim != 1 or len(weights) != len(edges) + 1:
            raise ValueError(f"base_vote_weights need one entry more than base_vote_edges, got {weights} and {edges}")
        if weights.dtype != np.float64 or edges.dtype != np.float64:
            raise ValueError(
                f"base_vote_weights and base_vote_edges must be float64, got {weights.dtype} and {edges.dtype}"
            )
        if not ((weights >= 0.0) & (weights <= 1.0)).all():
            raise ValueError(f"base_vote_weights must be in [0, 1], got {weights}")
        if not np.isfinite(edges).all() or (np.diff(edges) < 0).any():
            raise ValueError(f"base_vote_edges must be finite and ascend, got {edges}")
