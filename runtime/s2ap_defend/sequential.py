"""The sequential test as tables, and its numpy reference.

Members are asked in a fixed order. Member i's float32 score falls into one of K bins (the number of its edges that
are <= the score), `increments[i, bin]` is added to the log-likelihood ratio L in float64, and the boundaries are
tested after every member: adversarial when L >= upper[i], else clean when L <= lower[i]. Wald's test, weighted
members, graded evidence and calibrated boundaries differ only in these numbers, so one graph and one loop serve all.

The graph of a defended model equals `run_sequential_test` exactly, given the same member log-probabilities.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from s2ap_defend.types import Bool, Float32, Float64, Int64

Evidence = Literal["margin", "surprise"]

NEAR_TIE = np.float32(1e-4)
"""A member whose top log-probability exceeds the base label's by less than this agrees with the base label."""


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


@dataclass(frozen=True)
class SequentialOutcome:
    """What the sequential test and the vote decided for N inputs; fields as in Verdicts."""

    label: Int64
    adversarial: Bool
    label_change_rate: Float32
    log_likelihood_ratio: Float64
    members_used: Int64
    votes: Int64


def member_scores(evidence: Evidence, log_probabilities: Float32, base_label: Int64) -> Float32:
    """Scores of members against base labels, in nats, shape [..., N].

    Args:
        evidence: 'margin' or 'surprise', as in SequentialTest.
        log_probabilities: Member log-probabilities [..., N, K].
        base_label: Labels of the classifier [N].
    """
    index = np.broadcast_to(base_label[..., None], (*log_probabilities.shape[:-1], 1))
    of_base = np.take_along_axis(log_probabilities, index, axis=-1)[..., 0]
    if evidence == "surprise":
        return np.asarray(-of_base, dtype=np.float32)
    return np.asarray(log_probabilities.max(axis=-1) - of_base, dtype=np.float32)


def wald_increments(level_clean: float, level_adversarial: float) -> tuple[float, float]:
    """Log-likelihood increments of one member's vote: (it agrees, it disagrees).

    Wald 1945, section 3. Positive evidence speaks for 'adversarial'. The levels are the probabilities that a
    member's label differs from the classifier's, under 'clean' and under 'adversarial'. The votes of members trained
    on one data set are not independent, so Wald's error bounds are a design value until they are calibrated.

    Raises:
        ValueError: Unless 0 < level_clean < level_adversarial < 1.
    """
    if not 0.0 < level_clean < level_adversarial < 1.0:
        raise ValueError(f"need 0 < level_clean < level_adversarial < 1, got {level_clean} and {level_adversarial}")
    agrees = math.log((1.0 - level_adversarial) / (1.0 - level_clean))
    return agrees, math.log(level_adversarial / level_clean)


def wald_boundaries(alpha: float, beta: float) -> tuple[float, float]:
    """Boundaries (lower, upper) of L for false-alarm rate alpha and miss rate beta (Wald 1945).

    Raises:
        ValueError: Unless alpha and beta are positive and sum to less than one.
    """
    if not (alpha > 0.0 and beta > 0.0 and alpha + beta < 1.0):
        raise ValueError(f"need alpha > 0, beta > 0 and alpha + beta < 1, got {alpha} and {beta}")
    return math.log(beta / (1.0 - alpha)), math.log((1.0 - beta) / alpha)


def run_sequential_test(test: SequentialTest, log_probabilities: Float32, base_label: Int64) -> SequentialOutcome:
    """Run the test and the correction vote on inputs whose member answers are all known.

    Args:
        test: The tables.
        log_probabilities: Member log-probabilities [n, N, K], members in the order they are asked.
        base_label: Label of the classifier on the purified image [N].
    """
    _, count, classes = log_probabilities.shape
    scores = member_scores(test.evidence, log_probabilities, base_label)  # [n, N]
    margins = member_scores("margin", log_probabilities, base_label)
    ratio = np.zeros(count)
    decided = np.zeros(count, dtype=bool)
    adversarial = np.zeros(count, dtype=bool)
    votes = np.zeros((count, classes), dtype=np.int64)
    summed = np.zeros((count, classes))
    for i in range(test.members):
        undecided = ~decided
        asked = undecided | (adversarial & (i < test.vote_members))
        vote = np.where(margins[i] < NEAR_TIE, base_label, log_probabilities[i].argmax(axis=-1))
        votes[asked, vote[asked]] += 1
        summed[asked] += log_probabilities[i][asked].astype(np.float64)
        bins = (scores[i][:, None] >= test.edges[i][None, :]).sum(axis=1)
        ratio = np.where(undecided, ratio + test.increments[i, bins], ratio)
        crossed_upper = undecided & (ratio >= test.upper[i])
        adversarial |= crossed_upper
        decided |= crossed_upper | (undecided & (ratio <= test.lower[i]))
    adversarial |= ~decided & (ratio > test.final_threshold)
    used = votes.sum(axis=1)
    of_base = np.take_along_axis(votes, base_label[:, None], axis=1)[:, 0]
    corrected = correction_vote(votes, summed, base_label, test.base_vote_weight)
    return SequentialOutcome(
        label=np.where(adversarial, corrected, base_label),
        adversarial=adversarial,
        label_change_rate=((used - of_base) / used).astype(np.float32),
        log_likelihood_ratio=ratio,
        members_used=used,
        votes=votes,
    )


def correction_vote(votes: Int64, summed: Float64, base_label: Int64, base_vote_weight: float) -> Int64:
    """Label with the most votes [N], the base label's votes weighted.

    Ties go to the higher summed log-probability, then to the lower class index.

    Args:
        votes: Votes [N, K].
        summed: Sum of the asked members' log-probabilities [N, K].
        base_label: Label of the classifier [N].
        base_vote_weight: Weight of the base label's votes.
    """
    weighted = votes.astype(np.float64)
    rows = np.arange(len(votes))
    weighted[rows, base_label] *= base_vote_weight
    tied = weighted == weighted.max(axis=1, keepdims=True)
    return np.asarray(np.where(tied, summed, -np.inf).argmax(axis=1), dtype=np.int64)
