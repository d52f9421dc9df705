"""Exact error rates and sample numbers of any sequential test whose members vote independently."""

from dataclasses import dataclass

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential.tables import SequentialTest
from s2ap_defend.types import Float64

MAX_SUMS = 1 << 18
"""Different log-likelihood ratios that may be in play at once."""


@dataclass(frozen=True)
class OperatingPoint:
    """What a test does with one kind of input; adversarial + clean + undecided = 1.

    Attributes:
        adversarial: Probability of the verdict 'adversarial', truncated inputs included.
        clean: Probability of the verdict 'clean', truncated inputs included.
        undecided: Probability of no verdict; positive only where undecided inputs abstain.
        truncated: Probability that no boundary is crossed by the last member, whatever is decided then.
        mean_members: Expected number of members asked until the test stops (the average sample number, ASN); members
            that are asked afterwards for the vote are not counted.
    """

    adversarial: float
    clean: float
    undecided: float
    truncated: float
    mean_members: float


def operating_point(test: SequentialTest, bin_probabilities: Float64) -> OperatingPoint:
    """Operating point of a test for one kind of input, bin probabilities [n, K]; see `operating_points`."""
    return operating_points(test, np.asarray(bin_probabilities)[None])[0]


def operating_points(test: SequentialTest, bin_probabilities: Float64) -> list[OperatingPoint]:
    """Operating points of a test, exactly, by dynamic programming over the sums that it can reach.

    A state is a float64 log-likelihood ratio as `run_sequential_test` computes it, by repeated addition; only sums that
    are equal to the last bit are merged. So every path is decided as the loop decides it, ties included, for increments
    that are shared or specific to members, and for any number of bins. Assumes that members vote independently given
    the kind of input, which members trained on one data set do not.

    Args:
        test: The tables.
        bin_probabilities: Probability that member i's score falls into bin k on an input of kind c [C, n, K]; sums over
            k are one.

    Raises:
        ValueError: If the probabilities do not fit the tables, or something else than members and boundaries decides.
        RecipeError: If more than MAX_SUMS different sums are undecided at once, as with many unlike members.
    """
    probabilities = np.asarray(bin_probabilities, dtype=np.float64)
    if test.await_vote or test.signals:
        raise ValueError(
            "operating points are of boundaries and members alone; this test waits for votes or has signals"
        )
    if probabilities.ndim != 3 or probabilities.shape[1:] != test.increments.shape:
        raise ValueError(f"bin probabilities are {probabilities.shape[1:]}, the increments {test.increments.shape}")
    if not (probabilities >= 0.0).all() or not np.allclose(probabilities.sum(axis=2), 1.0, rtol=0.0, atol=1e-9):
        raise ValueError("every member's bin probabilities must be non-negative and sum to one")
    kinds = len(probabilities)
    sums, masses = np.zeros(1), np.ones((kinds, 1))  # [S], [C, S]: undecided log-likelihood ratios, probabilities
    adversarial, clean, asked = np.zeros(kinds), np.zeros(kinds), np.zeros(kinds)
    for i in range(test.members):
        asked += masses.sum(axis=1)
        possible = (probabilities[:, i] > 0.0).any(axis=0)
        after = np.add.outer(sums, test.increments[i, possible]).ravel()
        weights = (masses[:, :, None] * probabilities[:, i][:, None, possible]).reshape(kinds, -1)
        crossed_upper = after >= test.upper[i]
        crossed_lower = ~crossed_upper & (after <= test.lower[i])
        adversarial += weights[:, crossed_upper].sum(axis=1)
        clean += weights[:, crossed_lower].sum(axis=1)
        going_on = ~crossed_upper & ~crossed_lower
        sums, place = np.unique(after[going_on], return_inverse=True)
        if len(sums) > MAX_SUMS:
            raise RecipeError(
                f"more than {MAX_SUMS} different log-likelihood ratios are undecided after {i + 1} of {test.members} "
                "members; compute fewer members, or members that share their levels"
            )
        masses = np.stack([np.bincount(place, row, minlength=len(sums)) for row in weights[:, going_on]])
    return [
        after_the_last_member(test, sums, row, adversarial=float(up), clean=float(low), mean_members=float(count))
        for row, up, low, count in zip(masses, adversarial, clean, asked, strict=True)
    ]


def after_the_last_member(
    test: SequentialTest, ratios: Float64, masses: Float64, *, adversarial: float, clean: float, mean_members: float
) -> OperatingPoint:
    """Decide what no boundary has decided by the truncation rule of the test.

    Args:
        test: The tables.
        ratios: Undecided log-likelihood ratios [S].
        masses: Their probabilities [S].
        adversarial: Probability that the upper boundary was crossed.
        clean: Probability that the lower one was.
        mean_members: Expected members asked.
    """
    truncated = float(masses.sum())
    above = float(masses[ratios > test.final_threshold].sum())
    undecided = truncated if test.undecided_abstains else 0.0
    return OperatingPoint(
        adversarial=min(adversarial + above, 1.0),  # sums of many roundings may pass the ends by an ulp
        clean=min(max(clean + truncated - above - undecided, 0.0), 1.0),
        undecided=min(undecided, 1.0),
        truncated=min(truncated, 1.0),
        mean_members=min(mean_members, float(test.members)),
    )
