"""How much the members repeat each other on clean inputs."""

from dataclasses import dataclass

import numpy as np

from s2ap_defend.types import Bool


@dataclass(frozen=True)
class Correlation:
    """Mean pairwise correlation of the members' disagreements.

    Attributes:
        phi: Mean of phi over all pairs, in [-1, 1]; None with fewer than two members that vary.
        effective_members: Independent members that would say as much, n / (1 + (n - 1) phi) with phi not below 0; None
            where phi is.
        left_out: Members that always or never disagree: they have no correlation, and count neither in phi nor in n.
    """

    phi: float | None
    effective_members: float | None
    left_out: int


def member_correlation(disagreements: Bool) -> Correlation:
    """Correlation of disagreement indicators.

    Args:
        disagreements: Whether each member disagrees on each input [n, N].
    """
    varying = disagreements[disagreements.any(axis=1) & ~disagreements.all(axis=1)].astype(np.float64)
    n, left_out = len(varying), len(disagreements) - len(varying)
    if n < 2:
        return Correlation(None, None, left_out)
    phi = float(np.atleast_2d(np.corrcoef(varying))[~np.eye(n, dtype=bool)].mean())
    phi = min(max(phi, -1.0), 1.0)
    return Correlation(phi, effective_members(n, phi), left_out)


def effective_members(members: int, phi: float) -> float:
    """Effective number n / (1 + (n - 1) phi) of equally correlated members (Kish's design effect), phi not below 0."""
    return members / (1.0 + (members - 1) * max(phi, 0.0))
