"""Labels that a jury gives: its vote, and its mean probability mixed with the classifier's.

The graph of a model file does the same operations in the same order, and all of them are sums, products, quotients and
square roots of float64 numbers. IEEE 754 rounds those correctly, so every engine gets the same bits; how it would round
`exp` and `pow` is its own affair.
"""

from functools import reduce

import numpy as np

from s2ap_defend.types import Bool, Float32, Float64, Int64

__all__ = ["LOWEST_LOG", "SQUARINGS", "TAYLOR", "exponential", "mix", "mixed_label", "power", "settled", "voted_label"]

LOWEST_LOG = -40.0
"""Log-probabilities below count as this one, so that no power of a probability is subnormal."""
SQUARINGS = 8
"""e^x is computed as e^(x / 256), squared eight times."""
TAYLOR = (1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
"""Coefficients of e^x, those of the highest power first."""


def voted_label(votes: Float64, summed: Float64) -> Int64:
    """Label with the largest weight of votes [N]; ties go to the higher sum, then to the lower class index.

    Args:
        votes: Weight of the votes for each class [N, K].
        summed: Weighted sum of the jurors' log-probabilities [N, K].
    """
    tied = votes == votes.max(axis=1, keepdims=True)
    return np.asarray(np.where(tied, summed, -np.inf).argmax(axis=1), dtype=np.int64)


def exponential(logs: Float64) -> Float64:
    """Probabilities of log-probabilities, to a relative error of 1e-10, in an arithmetic that is the same everywhere.

    Args:
        logs: At most 0; those below LOWEST_LOG count as that.
    """
    part = np.maximum(logs, LOWEST_LOG)
    part *= 2.0**-SQUARINGS
    value = part * TAYLOR[0]
    value += TAYLOR[1]
    for coefficient in TAYLOR[2:]:
        value *= part
        value += coefficient
    for _ in range(SQUARINGS):
        value *= value
    return value


def power(base: Float64, exponent: float) -> Float64:
    """The power of probabilities by products and a square root; the exponent is a multiple of 1/2 above 0."""
    factors = [base] * int(exponent) + [np.sqrt(base)] * (exponent % 1 > 0)
    return reduce(np.multiply, factors)


def mixed_label(
    classifier: Float32, probabilities: Float64, weight: Float64, *, jury_share: float, amplification: float
) -> Int64:
    """Label of the mix of classifier and jury [N]; ties go to the lower class index.

    argmax_k of (1 - jury_share) p_k + jury_share q_k, q the jury's mean probability to the power of `amplification`,
    normalised (Bai et al. 2024, arXiv 2402.02263, equation 3, with a power in place of their transformation).

    Args:
        classifier: Log-probabilities of the classifier [N, K].
        probabilities: Weighted sum of the jurors' probabilities [N, K], as `exponential` gives them.
        weight: Sum of their weights [N], above 0.
        jury_share: In [0, 1].
        amplification: A multiple of 1/2 above 0.
    """
    own = exponential(classifier.astype(np.float64))
    return mix(own, probabilities, weight, jury_share=jury_share, amplification=amplification)


def mix(
    own: Float64, probabilities: Float64, weight: Float64 | float, *, jury_share: float, amplification: float
) -> Int64:
    """`mixed_label` of the classifier's own probabilities [N, K], as `exponential` gives them; one weight is of all."""
    amplified = power(probabilities / np.asarray(weight)[..., None], amplification)
    total = np.cumsum(amplified, axis=1)[:, -1:]
    mixed = (1.0 - jury_share) * own + jury_share * (amplified / total)
    return np.asarray(mixed.argmax(axis=1), dtype=np.int64)


def settled(votes: Float64, left: float) -> Bool:
    """Whether no votes of so much weight can change or tie the leader [N].

    Args:
        votes: Weight of the votes for each class [N, K].
        left: Weight of the votes that can still follow.
    """
    runner_up, leader = np.partition(votes, votes.shape[1] - 2, axis=1)[:, -2:].T
    return np.asarray(leader - runner_up > left)
