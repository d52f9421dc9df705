"""The numpy reference of the sequential test and of the correction vote.

The graph of a defended model equals `run_sequential_test` exactly, given the same member log-probabilities.
"""

from dataclasses import dataclass

import numpy as np

from s2ap_defend.sequential.tables import Evidence, SequentialTest
from s2ap_defend.types import Bool, Float32, Float64, Int64

NEAR_TIE = np.float32(1e-4)
"""A member whose top log-probability exceeds the base label's by less than this agrees with the base label."""


@dataclass(frozen=True)
class SequentialOutcome:
    """What the sequential test and the vote decided for N inputs; fields as in Verdicts."""

    label: Int64
    adversarial: Bool
    label_change_rate: Float32
    log_likelihood_ratio: Float64
    members_used: Int64
    votes: Int64
    abstained: Bool


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
    vote_members = test.vote_members if test.correct else 0
    ratio = np.zeros(count)
    decided = np.zeros(count, dtype=bool)
    adversarial = np.zeros(count, dtype=bool)
    settled = np.zeros(count, dtype=bool)
    votes = np.zeros((count, classes), dtype=np.int64)
    summed = np.zeros((count, classes))
    for i in range(test.members):
        undecided = ~decided
        asked = undecided | (adversarial & ~settled & (i < vote_members))
        vote = np.where(margins[i] < NEAR_TIE, base_label, log_probabilities[i].argmax(axis=-1))
        votes[asked, vote[asked]] += 1
        summed[asked] += log_probabilities[i][asked].astype(np.float64)
        ratio = np.where(undecided, ratio + _increments(test, i, scores[i]), ratio)
        crossed_upper = undecided & (ratio >= test.upper[i])
        adversarial |= crossed_upper
        decided |= crossed_upper | (undecided & (ratio <= test.lower[i]))
        if test.curtail and i + 1 < vote_members:
            weighted = weighted_votes(votes, base_label, base_vote_weight(test, ratio))
            runner_up, leader = np.partition(weighted, classes - 2, axis=1)[:, -2:].T
            settled |= adversarial & (leader - runner_up > vote_members - (i + 1))
    undecided = ~decided
    adversarial |= undecided & (ratio > test.final_threshold)
    abstained = (adversarial & (not test.correct)) | (undecided & test.undecided_abstains)
    used = votes.sum(axis=1)
    of_base = np.take_along_axis(votes, base_label[:, None], axis=1)[:, 0]
    corrected = correction_vote(votes, summed, base_label, base_vote_weight(test, ratio))
    return SequentialOutcome(
        label=np.where(adversarial & test.correct, corrected, base_label),
        adversarial=adversarial,
        label_change_rate=((used - of_base) / used).astype(np.float32),
        log_likelihood_ratio=ratio,
        members_used=used,
        votes=votes,
        abstained=abstained,
    )


def log_likelihood_path(test: SequentialTest, log_probabilities: Float32, base_label: Int64) -> Float64:
    """Log-likelihood ratio after each member if nobody stopped [n, N], in nats.

    `run_sequential_test` stops on this path: its ratio is the path's value at the stop, to the last bit.

    Args:
        test: The tables; its boundaries are not used.
        log_probabilities: Member log-probabilities [n, N, K], members in the order they are asked.
        base_label: Label of the classifier on the purified image [N].
    """
    scores = member_scores(test.evidence, log_probabilities, base_label)
    path = np.zeros((test.members, len(base_label)))
    ratio = np.zeros(len(base_label))
    for i in range(test.members):
        ratio = ratio + _increments(test, i, scores[i])
        path[i] = ratio
    return path


def base_vote_weight(test: SequentialTest, log_likelihood_ratio: Float64) -> Float64:
    """Weight of a vote for the base label of inputs flagged with these log-likelihood ratios [N]."""
    place = np.searchsorted(test.base_vote_edges, log_likelihood_ratio, side="right")
    return np.asarray(test.base_vote_weights[place], dtype=np.float64)


def weighted_votes(votes: Int64, base_label: Int64, base_vote_weight: float | Float64) -> Float64:
    """Votes [N, K] with those for the base label [N] weighted by one number or one of each input [N]."""
    weighted = votes.astype(np.float64)
    weighted[np.arange(len(votes)), base_label] *= base_vote_weight
    return weighted


def correction_vote(votes: Int64, summed: Float64, base_label: Int64, base_vote_weight: float | Float64) -> Int64:
    """Label with the most votes [N], the base label's votes weighted.

    Ties go to the higher summed log-probability, then to the lower class index.

    Args:
        votes: Votes [N, K].
        summed: Sum of the asked members' log-probabilities [N, K].
        base_label: Label of the classifier [N].
        base_vote_weight: Weight of the base label's votes, one number or one of each input [N].
    """
    weighted = weighted_votes(votes, base_label, base_vote_weight)
    tied = weighted == weighted.max(axis=1, keepdims=True)
    return np.asarray(np.where(tied, summed, -np.inf).argmax(axis=1), dtype=np.int64)


def _increments(test: SequentialTest, member: int, scores: Float32) -> Float64:
    """Evidence of one member's scores [N]."""
    bins = (scores[:, None] >= test.edges[member][None, :]).sum(axis=1)
    return np.asarray(test.increments[member, bins], dtype=np.float64)
