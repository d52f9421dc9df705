"""Boundaries: the conformal alarm boundary, what it promises, and tests that could never end.

Bates, Candes, Lei, Romano and Sesia 2023, arXiv 2104.08279; Vovk 2012, arXiv 1209.2673.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import SequentialTest, accepted_raw, log_likelihood_path
from s2ap_defend.types import Float64
from s2ap_train.calibration.answers import Answers
from s2ap_train.calibration.weakness import OnWeakness, Weakness, refuse

CONFIDENCE = 0.95


def alarm_statistic(test: SequentialTest, answers: Answers) -> Float64:
    """Largest log-likelihood ratio of each input up to the stop of the test that cannot raise an alarm [N], in nats.

    The test with alarm boundary A flags exactly the inputs whose statistic is at least A, whatever its lower boundary
    and min_accept: what the conformal boundary thresholds, and what a ROC curve sweeps. An input that the opening
    accepts on its raw image has -inf.
    """
    path, clean = log_likelihood_path(test, answers.said)  # [n, N]
    accepted = np.cumsum(clean, axis=0)
    asked = np.concatenate([np.zeros((1, path.shape[1]), dtype=bool), accepted[:-1] > 0]) == 0
    counts = asked & ~accepted_raw(test, answers.said) & (np.arange(test.members) >= test.opening - 1)[:, None]
    return np.asarray(np.where(counts, path, -np.inf).max(axis=0), dtype=np.float64)


def conformal_rank(samples: int, alpha: float) -> int:
    """The rank k = ceil((1 - alpha)(n + 1)), in exact decimals.

    Raises:
        RecipeError: If n is too small: k would be above n.
    """
    exact = Fraction(str(alpha))
    rank = math.ceil((1 - exact) * (samples + 1))
    if rank > samples:
        raise RecipeError(
            f"a false-alarm rate of {alpha:g} needs {samples_needed(alpha)} clean calibration inputs or more, got "
            f"{samples}; give more inputs or a larger alpha"
        )
    return rank


def samples_needed(alpha: float) -> int:
    """Calibration inputs without which no boundary keeps alpha: ceil(1 / alpha) - 1."""
    return math.ceil(1 / Fraction(str(alpha))) - 1


def least_alpha(samples: int) -> float:
    """The smallest false-alarm rate that so many inputs allow, 1 / (n + 1) rounded up to four decimals."""
    return math.ceil(1e4 / (samples + 1)) / 1e4


def conformal_boundary(statistics: Float64, alpha: float) -> float:
    """Smallest boundary A with P(statistic >= A) <= alpha for a new exchangeable input.

    The ceil((1 - alpha)(n + 1))-th smallest of n statistics, moved up by one float: the test flags at L >= A, the
    theorem at strictly more than that statistic.

    Args:
        statistics: Alarm statistics of calibration inputs that fitted nothing [n].
        alpha: False-alarm rate.

    Raises:
        RecipeError: If n is too small for alpha.
    """
    rank = conformal_rank(len(statistics), alpha)
    return float(np.nextafter(np.sort(statistics)[rank - 1], math.inf))


@dataclass(frozen=True)
class FalseAlarms:
    """What a conformal boundary promises.

    Attributes:
        expected: False-alarm rate of a new exchangeable input, averaged over calibration samples; at most so much, and
            exactly where statistics never tie.
        bound: Upper 95 % bound of the false-alarm rate, given the calibration sample.
    """

    expected: float
    bound: float


def false_alarms(samples: int, alpha: float) -> FalseAlarms:
    """Expected rate (n + 1 - k) / (n + 1), and its bound: given the sample, the rate is Beta(n + 1 - k, k) (Vovk 2012).

    Raises:
        RecipeError: If n is too small for alpha.
    """
    from scipy import stats  # type: ignore[import-untyped]

    rank = conformal_rank(samples, alpha)
    above = samples + 1 - rank
    return FalseAlarms(above / (samples + 1), float(stats.beta.ppf(CONFIDENCE, above, rank)))


def lower_boundaries(value: float, members: int, min_accept: int) -> Float64:
    """Clean boundary [n]: -inf before `min_accept` members, or before the last where there are fewer."""
    lower = np.full(members, value)
    lower[: min(min_accept, members) - 1] = -math.inf
    return lower


def closed_when_nothing_follows(test: SequentialTest, min_accept: int) -> SequentialTest:
    """The test that decides 'clean' as soon as no further evidence can come, instead of asking the rest for nothing.

    After the last member that says anything, and after `min_accept` members, the clean boundary is the float below the
    alarm boundary: whatever is not flagged there never will be. No verdict of a test that truncates to 'clean' changes;
    one that would flag at truncation no longer does. A test that abstains when undecided stays as it is.
    """
    if test.undecided_abstains:
        return test
    says = np.flatnonzero((test.increments != 0).any(axis=1))
    last = max(int(says[-1]) if len(says) else 0, min(min_accept, test.members) - 1)
    if last == test.members - 1 and test.final_threshold == math.inf:
        return test
    lower = test.lower.copy()
    lower[last:] = np.nextafter(test.upper[last:], -math.inf)
    return replace(test, lower=lower)


def without_closing(test: SequentialTest) -> Float64:
    """The clean boundaries [n], -inf where `closed_when_nothing_follows` has put its own."""
    return np.where(test.closed, -math.inf, test.lower)


def check_alarm_possible(test: SequentialTest, statistics: Float64, alpha: float, weak: OnWeakness = refuse) -> None:
    """Check that some input can be flagged by a boundary.

    Args:
        test: With the boundary.
        statistics: Alarm statistics of the calibration inputs [n].
        alpha: False-alarm rate that the boundary keeps.
        weak: Called if the alarm boundary is above everything that the members can say.
    """
    reachable = sum(one.increments.max() for one in test.signals) + np.cumsum(test.increments.max(axis=1))
    if (reachable >= test.upper).any():
        return
    most = float(reachable.max())
    share = float((statistics >= most).mean())
    weak(
        Weakness(
            part="boundary",
            found=f"{test.members} members can say at most {most:.2f} nats, which more than {alpha:g} of the clean "
            f"calibration inputs reach ({share:.1%}): no boundary at that false-alarm rate flags anything",
            instead="nothing is flagged",
            cure="give a larger alpha, more evidence bins or better members",
        )
    )


def check_decidable(test: SequentialTest, weak: OnWeakness = refuse) -> None:
    """Check that both decisions can be reached before truncation.

    Args:
        test: The test.
        weak: Called with each that cannot, and with how many members like these could.
    """
    for name, instead, sign, boundary in (
        ("clean", "an input that is not flagged is asked of all members", -1, -test.lower),
        ("adversarial", "its truncation alone flags, after all members", 1, test.upper),
    ):
        steps = (sign * test.increments).max(axis=1)
        reached = sum((sign * one.increments).max() for one in test.signals) + np.cumsum(steps)
        if (reached >= boundary).any():
            continue
        level, step = float(boundary.min()), float(steps.mean())
        if step <= 0 or not math.isfinite(level):
            found = f"this test can never decide {name!r}: no answer of any member speaks for it"
            cure = "give other members, more data.fit, or kind 'conformal'"
        else:
            found = (
                f"this test can never decide {name!r}: {test.members} members say {reached[-1]:.2f} nats for it at "
                f"most, its boundary is {level:.2f}"
            )
            cure = f"it takes {math.ceil(level / step - 1e-9)} members like these, or a larger alpha and beta"
        weak(Weakness("boundary", found, instead, cure))
