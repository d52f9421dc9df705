"""Wald's sequential probability ratio test: levels, increments, boundaries and the tables that carry them.

The test of Wang, Chen, Dong and Xuan (IEEE Access 2021, DOI 10.1109/ACCESS.2021.3133334), Algorithm 1, cannot be run as
printed: the linear ratio is compared with logarithmic boundaries, the rate sigma is added to a logarithmic boundary,
alpha and beta change roles with the orientation of the ratio, line 3 is malformed, and taken literally every input is
clean after its first member. The detector that its authors released (and that mutation testing, MMT, shares) has two
more faults: its count of disagreements lags one member behind, and it tests only after a disagreement. What follows is
the test as Wald states it (Annals of Mathematical Statistics 16, 1945): the log-likelihood ratio L against logarithmic
boundaries, after every member, agreeing or not. `paper_levels` gives the paper's levels for it.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential.path import NEAR_TIE
from s2ap_defend.types import Float32, Float64

PAPER_QUANTILE = 2.58
"""Standard errors above the mean clean label change rate: zeta is the upper end of a two-sided 99 % interval."""

PAPER_INDIFFERENCE = 0.1
"""The paper's sigma as a share of zeta: half the width of the indifference region."""


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

    For independent votes the rates reached without truncation are at most alpha / (1 - beta) and beta / (1 - alpha).

    Raises:
        ValueError: Unless alpha and beta are positive and sum to less than one.
    """
    if not (alpha > 0.0 and beta > 0.0 and alpha + beta < 1.0):
        raise ValueError(f"need alpha > 0, beta > 0 and alpha + beta < 1, got {alpha} and {beta}")
    return math.log(beta / (1.0 - alpha)), math.log((1.0 - beta) / alpha)


def ville_boundary(alpha: float) -> float:
    """Upper boundary of L that a clean input of independent votes ever reaches with probability alpha at most.

    exp(L) is a martingale of mean one under 'clean', so P(sup_n exp(L_n) >= 1 / alpha) <= alpha (Ville 1939): the bound
    holds at any stopping time, whatever the lower boundary, min_accept or the number of members. The same argument for
    exp(-L) under 'adversarial' makes -ville_boundary(beta) the lower boundary for misses.

    Raises:
        ValueError: Unless 0 < alpha < 1.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"need 0 < alpha < 1, got {alpha}")
    return -math.log(alpha)


def paper_levels(clean_label_change_rates: ArrayLike) -> tuple[float, float]:
    """Levels (q0, q1) = (zeta - sigma, zeta + sigma) of the paper's test.

    Wang et al. 2021 and its released code: zeta is the mean label change rate of clean inputs plus 2.58 standard
    errors, sigma = 0.1 zeta.

    Args:
        clean_label_change_rates: Share of members that disagree with the classifier, per clean input [N], N >= 2.

    Raises:
        RecipeError: If there are too few rates, if one is outside [0, 1], or if zeta leaves no room for both levels.
    """
    rates = np.asarray(clean_label_change_rates, dtype=np.float64).ravel()
    if len(rates) < 2 or not ((rates >= 0.0) & (rates <= 1.0)).all():
        raise RecipeError(
            f"the paper's levels need two label change rates or more, all in [0, 1], got {len(rates)}; "
            "measure them on clean inputs"
        )
    zeta = float(rates.mean() + PAPER_QUANTILE * rates.std(ddof=1) / math.sqrt(len(rates)))
    sigma = PAPER_INDIFFERENCE * zeta
    if not 0.0 < zeta - sigma < zeta + sigma < 1.0:
        raise RecipeError(
            f"the paper's levels {zeta - sigma:.4g} and {zeta + sigma:.4g}, from a clean label change rate of "
            f"{zeta:.4g}, must lie between 0 and 1; choose another test or more diverse members"
        )
    return zeta - sigma, zeta + sigma


def binary_tables(
    level_clean: float | Sequence[float] | Float64,
    level_adversarial: float | Sequence[float] | Float64,
    *,
    members: int | None = None,
) -> tuple[Float32, Float64]:
    """Edges [n, 1] and increments [n, 2] of a test in which a member only agrees or disagrees (evidence 'margin').

    The edge is NEAR_TIE, so bin 1 is exactly the vote 'another label', a near-tie being agreement.

    Args:
        level_clean: Probability of disagreement under 'clean', shared or per member [n].
        level_adversarial: The same under 'adversarial'.
        members: n, where both levels are shared; without it that is one member.

    Raises:
        ValueError: Unless 0 < level_clean < level_adversarial < 1 for every member, or if the lengths differ.
    """
    clean, adversarial = np.broadcast_arrays(np.atleast_1d(level_clean), np.atleast_1d(level_adversarial))
    if clean.ndim != 1 or (members not in {None, len(clean)} and len(clean) != 1):
        raise ValueError(f"levels of shape {clean.shape} do not fit {members} members")
    repeat = 1 if members is None or len(clean) == members else members
    pairs = [wald_increments(float(low), float(high)) for low, high in zip(clean, adversarial, strict=True)] * repeat
    return np.full((len(pairs), 1), NEAR_TIE, dtype=np.float32), np.array(pairs, dtype=np.float64)
