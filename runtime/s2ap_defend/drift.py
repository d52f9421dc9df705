"""The drift monitor: do served inputs still look like the clean inputs that the file was calibrated on?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from s2ap_defend.errors import InputError, ModelFileError, RecipeError
from s2ap_defend.manifest import Manifest
from s2ap_defend.sequential import SequentialTest
from s2ap_defend.types import Bool, Float64, Int64, Verdicts

CELLS_PER_NAT = 64
MAX_NATS = 64
SLOPES = (-2.0, -1.0, 1.0, 2.0)
MAX_CAPITAL = 1e300
TOGETHER = 64  # inputs whose p-values are computed at once, by comparing each with each


@dataclass(frozen=True)
class DriftReport:
    """How the served inputs compare with the reference.

    Attributes:
        count: Inputs served so far.
        window: The latest of them that statistic, p_value, mean_p_value and flagged are about.
        statistic: Kolmogorov-Smirnov distance between their conformal p-values and the uniform distribution, in [0, 1].
        p_value: Asymptotic p-value of the statistic at this one look. Repeated looks raise false alarms; see `drifted`.
        mean_p_value: Mean conformal p-value: 1/2 without drift, less where inputs look more adversarial than the
            reference, more where they look cleaner; nan before the first input.
        flagged: Share of the window that was flagged; nan before the first input.
        expected_flagged: Share of the reference that the file flags: of all held-out clean inputs, right or wrong, as
            `flagged` is of all served ones, so more than the false-alarm rate where that counts the right ones only.
            None if unknown: without a manifest, or where a final ratio does not tell whether it was flagged.
        log_martingale: Logarithm of the conformal test martingale now, in nats.
        drifted: Whether the martingale has ever reached 1 / level. It stays so until the monitor is replaced.
    """

    count: int
    window: int
    statistic: float
    p_value: float
    mean_p_value: float
    flagged: float
    expected_flagged: float | None
    log_martingale: float
    drifted: bool


class DriftMonitor:
    """Compares the final log-likelihood ratios of served inputs with those of the held-out clean inputs of a file.

        monitor = DriftMonitor(classifier.manifest)
        report = monitor.update(classifier(images))

    Two statistics, both of smoothed conformal p-values: the rank of a ratio among earlier ones, ties broken at random
    (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, section 2.5).

    - A look at the latest `window` inputs: p-values against the reference, and their Kolmogorov-Smirnov distance from
      uniform. The reference is a sample too, so its p-value is that of the two-sample test, n m / (n + m) effective
      inputs, with Stephens' correction (JRSS B 32, 1970). Ties make it conservative.
    - An alarm that may be watched all the time: p-values against the reference and all earlier served inputs, which are
      independent and uniform if all of them are exchangeable, multiplied up as bets: a conformal test martingale. Bets
      are 1 + s (p - 1/2) for four slopes s, as in the Simple Jumper of Vovk et al. 2021 (arXiv 2102.10439, PMLR 152);
      the share 1 / (t (t + 1)) of the capital starts to bet at input t, so that a late change is found as well. By
      Ville's inequality an exchangeable stream ever raises this alarm with probability `level` at most.

    What it does not guarantee. Attacks are not drift: a few of them change no distribution, many do, and nothing here
    tells which it was. Exchangeable means that order says nothing: repeated or like images in a burst are a change.
    `p_value` holds for one look, and all looks share one reference sample. The boundaries of the test were calibrated
    on the reference inputs, which makes them unlike new ones by about one input in n. No alarm is no proof that
    nothing changed: only the evidence of the members is compared, by its mean for the martingale.

    Memory is bounded. It may be called from several threads.

    Args:
        reference: A manifest, or final log-likelihood ratios of clean inputs, in nats.
        window: Inputs of the sliding window.
        level: Probability of ever raising the alarm without drift.
        seed: Seed of the generator that breaks ties.

    Raises:
        ModelFileError: If the manifest carries no reference ratios.
        InputError: If the ratios are empty or not finite.
        RecipeError: If window or level are out of range.
    """

    def __init__(
        self, reference: Manifest | Sequence[float], *, window: int = 1000, level: float = 0.01, seed: int = 0
    ) -> None:
        if window < 1 or not 0.0 < level < 1.0:
            raise RecipeError(f"window is {window} and level {level}; expected at least one input and 0 < level < 1")
        self.expected_flagged: float | None = None
        if isinstance(reference, Manifest):
            calibration = reference.test.calibration
            ratios = np.array(calibration.reference_ratios, dtype=np.float64)
            if not len(ratios):
                raise ModelFileError(
                    "the model file carries no reference log-likelihood ratios, which a drift monitor compares with; "
                    "write it again with `s2ap-defend calibrate`"
                )
            self.expected_flagged = _share_flagged(reference.to_test(), ratios)
        else:
            ratios = np.array(reference, dtype=np.float64)
        if not len(ratios) or not np.isfinite(ratios).all():
            raise InputError(f"got {len(ratios)} reference ratios, or some are not finite; expected finite numbers")
        self.window = window
        self.level = level
        self._reference = np.sort(ratios)
        self._random = np.random.default_rng(seed)
        self._lock = Lock()
        self._count = 0
        self._p_values = np.zeros(window)  # rings: input number t is at t % window
        self._flagged = np.zeros(window, dtype=bool)
        self._martingale = _Martingale(ratios)
        self._drifted = False

    def update(self, verdicts: Verdicts) -> DriftReport:
        """Take in the verdicts of N served inputs and report."""
        with self._lock:
            self._observe(verdicts.log_likelihood_ratio, verdicts.adversarial)
            return self._report()

    def observe(self, verdicts: Verdicts) -> None:
        """Take in the verdicts of N served inputs; cheaper than `update`."""
        self.observe_ratios(verdicts.log_likelihood_ratio, verdicts.adversarial)

    def observe_ratios(self, ratios: Float64, flagged: Bool) -> None:
        """Take in N served inputs of which only their final ratios [N] and whether they were flagged [N] are left."""
        with self._lock:
            self._observe(ratios, flagged)

    def report(self) -> DriftReport:
        """Report on what was taken in so far."""
        with self._lock:
            return self._report()

    def _observe(self, ratios: Float64, flagged: Bool) -> None:
        ratios = np.nan_to_num(ratios, nan=math.inf)  # what is no number is as odd as can be
        below = np.searchsorted(self._reference, ratios, side="left")
        equal = np.searchsorted(self._reference, ratios, side="right") - below
        above = len(self._reference) - below - equal
        uniform = self._random.random((len(ratios), 2))  # a row an input: how inputs are batched changes nothing
        p_values = (above + uniform[:, 0] * (equal + 1)) / (len(self._reference) + 1)
        places = np.arange(self._count, self._count + len(ratios))[-self.window :] % self.window
        self._p_values[places] = p_values[-self.window :]
        self._flagged[places] = flagged[-self.window :]
        self._count += len(ratios)
        largest = self._martingale.update(ratios, uniform[:, 1])
        self._drifted |= largest >= 1.0 / self.level

    def _report(self) -> DriftReport:
        size = min(self._count, self.window)
        p_values = np.sort(self._p_values[:size])
        statistic = _distance_from_uniform(p_values)
        return DriftReport(
            count=self._count,
            window=size,
            statistic=statistic,
            p_value=_two_sample_p_value(statistic, len(self._reference), size),
            mean_p_value=float(p_values.mean()) if size else math.nan,
            flagged=float(self._flagged[:size].mean()) if size else math.nan,
            expected_flagged=self.expected_flagged,
            log_martingale=math.log(self._martingale.capital),
            drifted=self._drifted,
        )


def _share_flagged(test: SequentialTest, ratios: Float64) -> float | None:
    """Share of inputs with these final ratios [N] that the test flagged; None where the ratios do not tell.

    They tell where one boundary lies above all that is accepted and is that of every member that can decide, from the
    last of the opening on, and of the truncation.
    """
    upper = test.upper[test.opening - 1 :]
    if (upper != upper[0]).any():
        return None
    undecided = np.nextafter(max(test.final_threshold, float(test.lower[-1])), np.inf)  # flagged from here at the end
    boundary = min(float(upper[0]), float(undecided))
    return None if (test.lower >= boundary).any() else float((ratios >= boundary).mean())


class _Martingale:
    """The conformal test martingale over a growing history, which is kept as counts on a grid that no data chose."""

    def __init__(self, reference: Float64) -> None:
        self._history = np.bincount(_cells(reference), minlength=2 * MAX_NATS * CELLS_PER_NAT + 1)
        self._bets = [0.0] * len(SLOPES)
        self._seen = len(reference)
        self._steps = 0
        self.capital = 1.0

    def update(self, ratios: Float64, uniform: Float64) -> float:
        """Bet on ratios [N] in their order, ties broken by uniform numbers [N]; return the largest capital on the way.

        Reserve R and bets C_s, R + sum C_s = 1 at the start; at step t the bets get R / (t + 1) = 1 / (t (t + 1)) of
        the first capital in equal parts and are then multiplied by 1 + s (p - 1/2), whose mean over p is one.
        """
        largest = 0.0
        for p in self._p_values(_cells(ratios), uniform):
            self._steps += 1
            started = 1.0 / (self._steps * (self._steps + 1)) / len(SLOPES)
            self.capital = 1.0 / (self._steps + 1)
            for i, slope in enumerate(SLOPES):  # so few that an array would take longer
                bet = (self._bets[i] + started) * (1.0 + slope * (p - 0.5))
                self._bets[i] = min(bet, MAX_CAPITAL)  # giving capital away keeps Ville's inequality
                self.capital += self._bets[i]
            largest = max(largest, self.capital)
        return largest

    def _p_values(self, cells: Int64, uniform: Float64) -> Iterator[float]:
        """P-values of inputs in these cells [N], each among all before it, itself included."""
        for first in range(0, len(cells), TOGETHER):
            here = cells[first : first + TOGETHER]
            above = np.cumsum(self._history[::-1])[::-1] - self._history  # of all before `here`, in cells beyond each
            own, other = here[:, None], here[None, :]
            earlier = np.tri(len(here), k=-1, dtype=bool)  # [i, j]: j came before i
            more = above[here] + (earlier & (other > own)).sum(axis=1)
            same = self._history[here] + (earlier & (other == own)).sum(axis=1)
            seen = self._seen + np.arange(len(here))
            np.add.at(self._history, here, 1)
            self._seen += len(here)
            yield from ((more + uniform[first : first + TOGETHER] * (same + 1)) / (seen + 1)).tolist()


def _cells(ratios: Float64) -> Int64:
    nearest = np.rint(np.clip(ratios, -MAX_NATS, MAX_NATS) * CELLS_PER_NAT)
    return nearest.astype(np.int64) + MAX_NATS * CELLS_PER_NAT


def _distance_from_uniform(p_values: Float64) -> float:
    """Kolmogorov-Smirnov distance of ascending p-values [m] from the uniform distribution; 0 of none."""
    size = len(p_values)
    steps = np.arange(size + 1) / max(size, 1)
    return float(max(np.max(steps[1:] - p_values, initial=0.0), np.max(p_values - steps[:-1], initial=0.0)))


def _two_sample_p_value(statistic: float, first: int, second: int) -> float:
    """P(the distance of samples of these sizes is larger), Stephens' approximation; 1 for an empty sample."""
    effective = math.sqrt(first * second / (first + second))
    return kolmogorov_survival((effective + 0.12 + 0.11 / effective) * statistic) if effective else 1.0


def kolmogorov_survival(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution: 2 sum_k (-1)^(k-1) exp(-2 k^2 x^2), by its theta transform for small x."""
    if x <= 0.0:
        return 1.0
    if x < 1.0:
        terms = (math.exp(-(((2 * k - 1) * math.pi / x) ** 2) / 8.0) for k in range(1, 8))
        return 1.0 - math.sqrt(2.0 * math.pi) / x * math.fsum(terms)
    return 2.0 * math.fsum((-1.0) ** (k - 1) * math.exp(-2.0 * (k * x) ** 2) for k in range(1, 8))
