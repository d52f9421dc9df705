"""Labels that a jury gives: its vote, and its mean probability mixed with the classifier's.

The graph of a model file does the same operations in the same order, and all of them are sums, products, quotients and
square roots of float64 numbers. IEEE 754 rounds those correctly, so every engine gets the same bits; how it would round
`exp` and `pow` is its own affair. Classes come first, so that what is done for each is done for many inputs.
"""

from functools import reduce

import numpy as np

from s2ap_defend.types import Bool, Float64, Int64

__all__ = ["LOWEST_LOG", "SQUARINGS", "TAYLOR", "exponential", "mixed_label", "power", "settled", "voted_label"]

LOWEST_LOG = -40.0
"""Log-probabilities below count as this one, so that no power of a probability is subnormal."""
SQUARINGS = 8
"""e^x is computed as e^(x / 256), squared eight times."""
TAYLOR = (1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
"""Coefficients of e^x, those of the highest power first."""


_COEFFICIENTS = tuple(np.array(coefficient) for coefficient in TAYLOR)
_LOWEST, _SCALE = np.array(LOWEST_LOG), np.array(2.0**-SQUARINGS)
"""Arrays, which numpy need not make of a number each time."""


def voted_label(votes: Float64, summed: Float64) -> Int64:
    """Label with the largest weight of votes [N]; ties go to the higher sum, then to the lower class index.

    Args:
        votes: Weight of the votes for each class [K, N].
        summed: Weighted sum of the jurors' log-probabilities [K, N].
    """
    tied = votes == np.maximum.reduce(votes, axis=0)
    return np.asarray(np.where(tied, summed, -np.inf).argmax(axis=0), dtype=np.int64)


def exponential(logs: Float64) -> Float64:
    """Probabilities of log-probabilities, to a relative error of 1e-10, in an arithmetic that is the same everywhere.

    Args:
        logs: At most 0; those below LOWEST_LOG count as that.
    """
    part = np.maximum(logs, _LOWEST)
    np.multiply(part, _SCALE, out=part)
    value = np.multiply(part, _COEFFICIENTS[0])
    np.add(value, _COEFFICIENTS[1], out=value)
    for coefficient in _COEFFICIENTS[2:]:
        np.multiply(value, part, out=value)
        np.add(value, coefficient, out=value)
    for _ in range(SQUARINGS):
        np.multiply(value, value, out=value)
    return np.asarray(value)


def power(base: Float64, exponent: float) -> Float64:
    """The power of probabilities by products and a square root; the exponent is a multiple of 1/2 above 0."""
    factors = [base] * int(exponent)
    if exponent % 1:
        factors.append(np.sqrt(base))
    return reduce(np.multiply, factors)


def mixed_label(
    own: Float64, probabilities: Float64, weight: Float64 | float, *, jury_share: float, amplification: float
) -> Int64:
    """Label of the mix of classifier and jury [N]; ties go to the lower class index.

    argmax_k of (1 - jury_share) p_k + jury_share q_k, q the jury's mean probability to the power of `amplification`,
    normalised (Bai et al. 2024, arXiv 2402.02263, equation 3, with a power in place of their transformation).

    Args:
        own: Probabilities of the classifier [K, N], as `exponential` gives them.
        probabilities: Weighted sum of the jurors' [K, N], likewise.
        weight: Sum of their weights [N], above 0, or one for all.
        jury_share: In [0, 1].
        amplification: A multiple of 1/2 above 0.
    """
    amplified = power(probabilities / weight, amplification)
    total = np.add.accumulate(amplified, axis=0)[-1]  # one class after the other, as a sum need not be
    mixed = (1.0 - jury_share) * own + jury_share * (amplified / total)
    return np.asarray(mixed.argmax(axis=0), dtype=np.int64)


def settled(votes: Float64, left: float) -> Bool:
    """Whether no votes of so much weight can change or tie the leader [N].

    Args:
        votes: Weight of the votes for each class [K, N].
        left: Weight of the votes that can still follow, at least 0.
    """
    near = np.maximum.reduce(votes, axis=0) - votes <= left  # the leader is one of them
    return np.asarray(np.add.reduce(near, axis=0, dtype=np.int64) == 1)
