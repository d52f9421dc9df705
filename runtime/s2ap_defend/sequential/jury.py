"""Labels that a jury gives: its vote, and its mean probability mixed with the classifier's.

The graph of a model file does the same operations in the same order.
"""

import numpy as np

from s2ap_defend.types import Bool, Float32, Float64, Int64

__all__ = ["mixed_label", "settled", "voted_label"]


def voted_label(votes: Float64, summed: Float64) -> Int64:
    """Label with the largest weight of votes [N]; ties go to the higher sum, then to the lower class index.

    Args:
        votes: Weight of the votes for each class [N, K].
        summed: Weighted sum of the jurors' log-probabilities [N, K].
    """
    tied = votes == votes.max(axis=1, keepdims=True)
    return np.asarray(np.where(tied, summed, -np.inf).argmax(axis=1), dtype=np.int64)


def mixed_label(
    classifier: Float32, probabilities: Float64, weight: Float64, *, jury_share: float, amplification: float
) -> Int64:
    """Label of the mix of classifier and jury [N]; ties go to the lower class index.

    argmax_k of (1 - jury_share) p_k + jury_share q_k, q the jury's mean probability to the power of `amplification`,
    normalised (Bai et al. 2024, arXiv 2402.02263, equation 3, with a power in place of their transformation).

    Args:
        classifier: Log-probabilities of the classifier [N, K].
        probabilities: Weighted sum of the jurors' probabilities [N, K].
        weight: Sum of their weights [N], above 0.
        jury_share: In [0, 1].
        amplification: Above 0.
    """
    amplified = (probabilities / weight[:, None]) ** amplification
    total = np.cumsum(amplified, axis=1)[:, -1:]
    mix = (1.0 - jury_share) * np.exp(classifier.astype(np.float64)) + jury_share * (amplified / total)
    return np.asarray(mix.argmax(axis=1), dtype=np.int64)


def settled(votes: Float64, left: float) -> Bool:
    """Whether no votes of so much weight can change or tie the leader [N].

    Args:
        votes: Weight of the votes for each class [N, K].
        left: Weight of the votes that can still follow.
    """
    runner_up, leader = np.partition(votes, votes.shape[1] - 2, axis=1)[:, -2:].T
    return np.asarray(leader - runner_up > left)
