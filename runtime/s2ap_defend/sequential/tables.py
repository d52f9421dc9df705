"""The tables of a sequential test.

Members are asked in a fixed order. Member i's float32 score falls into one of K bins (the number of its edges that
are <= the score), `increments[i, bin]` is added to the log-likelihood ratio L in float64, and the boundaries are
tested after every member: adversarial when L >= upper[i], else clean when L <= lower[i]. Wald's test, weighted
members, graded evidence and calibrated boundaries differ only in these numbers, so one graph and one loop serve all.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from s2ap_defend.types import Float32, Float64

Evidence = Literal["margin", "surprise"]


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
        base_vote_weight: Weight in [0, 1] of votes for the base label in the correction of a flagged input.
        waves: Sizes of the groups in which members are evaluated; they change speed, never a result.
    """

    evidence: Evidence
    edges: Float32
    increments: Float64
    lower: Float64
    upper: Float64
    final_threshold: float
    vote_members: int
    base_vote_weight: float
    waves: tuple[int, ...]

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
        if not 0.0 <= self.base_vote_weight <= 1.0 or math.isnan(self.final_threshold):
            raise ValueError("base_vote_weight must be in [0, 1] and final_threshold must be a number")

    @property
    def members(self) -> int:
        """Number of members n."""
        return len(self.increments)
