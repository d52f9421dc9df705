"""Wald's sequential probability ratio test: increments and boundaries."""

import math


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
