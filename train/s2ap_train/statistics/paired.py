"""Differences between two systems that were measured on the same images, or with the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from s2ap_defend.types import Bool

CONFIDENCE = 0.95
NOISE = 0.05
"""A difference with a p-value from here on is called noise."""
POWER = 0.8
"""Chance of finding a gain of the size that was found, in `images_needed`."""
SIGNIFICANCE = 0.01
"""An attack that must not be the weaker one is called weaker below this p-value (exact, one-sided)."""


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of two systems on the same images: after minus before.

    Attributes:
        samples: Images.
        before: Share that the first system has right.
        after: Share that the second has right.
        difference: after - before.
        interval: Its 95 % confidence interval, Agresti and Min.
        lost: Images right before and wrong after.
        gained: Images wrong before and right after.
        p_value: McNemar's exact two-sided test of lost = gained.
    """

    samples: int
    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    lost: int
    gained: int
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "interval": list(self.interval)}


@dataclass(frozen=True)
class SeedDifference:
    """A measure of two methods over the same seeds: mean of (method - baseline).

    Attributes:
        count: Seeds n.
        mean: Mean difference.
        std: Sample standard deviation (n - 1) of the differences; None for one seed.
        interval: 95 % interval of the mean by Student's t with n - 1 degrees of freedom; None for one seed.
    """

    count: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "interval": None if self.interval is None else list(self.interval)}


def paired_difference(before: Bool, after: Bool) -> PairedDifference:
    """Compare which of the same images [N] two systems have right.

    The interval is that of Agresti and Min 2005 (Statistics in Medicine 24, 729-740): Wald's interval for matched
    proportions after half an image is added to each of the four cells, which keeps its coverage for small N and never
    has length 0. It speaks of images drawn from the same source, for these two trained networks; what another training
    seed would give is not in it.

    Raises:
        ValueError: If the arrays are empty or of different lengths.
    """
    if len(before) != len(after) or len(before) == 0:
        raise ValueError(f"a paired difference needs the same images twice; got {len(before)} and {len(after)}")
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    return _counted(len(before), float(np.mean(before)), float(np.mean(after)), lost, gained)


def pooled_difference(parts: Sequence[PairedDifference]) -> PairedDifference:
    """The same two systems, or two that were made the same way, on images of which each part has its own.

    Raises:
        ValueError: If there are no parts.
    """
    count, lost, gained = (sum(getattr(one, name) for one in parts) for name in ("samples", "lost", "gained"))
    if not count:
        raise ValueError("a pooled difference needs at least one part")
    before, after = (sum(getattr(one, side) * one.samples for one in parts) / count for side in ("before", "after"))
    return _counted(count, before, after, lost, gained)


def _counted(count: int, before: float, after: float, lost: int, gained: int) -> PairedDifference:
    interval = agresti_min(lost, gained, count)
    return PairedDifference(
        count, before, after, (gained - lost) / count, interval, lost, gained, mcnemar(lost, gained)
    )


def agresti_min(lost: int, gained: int, count: int) -> tuple[float, float]:
    """95 % interval of the difference (gained - lost) / count of matched proportions, inside [-1, 1].

    Agresti and Min 2005: with b, c half an image more and n two more, (c - b) / n +- z sqrt(b + c - (c - b)^2 / n) / n.
    """
    from scipy import stats  # type: ignore[import-untyped]

    b, c, n = lost + 0.5, gained + 0.5, count + 2
    half = stats.norm.ppf(0.5 + CONFIDENCE / 2) * math.sqrt(b + c - (c - b) ** 2 / n) / n
    return max(-1.0, float((c - b) / n - half)), min(1.0, float((c - b) / n + half))


def mcnemar(lost: int, gained: int, *, alternative: str = "two-sided") -> float:
    """Exact p-value that images are lost as often as gained, binomial with one half (McNemar 1947).

    `alternative` "greater" asks whether more were lost than gained. Without any discordant image it is 1.
    """
    from scipy import stats

    return float(stats.binomtest(lost, lost + gained, 0.5, alternative=alternative).pvalue) if lost + gained else 1.0


def images_needed(effect: PairedDifference) -> int | None:
    """Images with which McNemar's test would find a gain of this size in four of five evaluations, roughly.

    Connor 1987 (Biometrics 43, 207-211), two-sided at `NOISE`, power 80 %, at the shares of lost and gained images that
    were found. They are uncertain themselves: read it as an order of magnitude. None: nothing was gained.
    """
    if effect.difference <= 0.0:
        return None
    from scipy import stats

    discordant = (effect.lost + effect.gained) / effect.samples
    level, power = (float(stats.norm.ppf(share)) for share in (1.0 - NOISE / 2, POWER))
    deviation = level * math.sqrt(discordant) + power * math.sqrt(discordant - effect.difference**2)
    return math.ceil((deviation / effect.difference) ** 2)


def two_digits(count: int) -> int:
    """A number of images that is an order of magnitude, as it is printed."""
    return round(count, 2 - len(str(count)))


def not_weaker(right: Mapping[str, Bool], *, significance: float = SIGNIFICANCE) -> tuple[bool, dict[str, float]]:
    """Whether the second attack breaks no fewer images than the first, beyond chance, and what decided.

    McNemar's exact one-sided test on the images that one attack broke and the other did not.

    Args:
        right: Two attacks by name, the one that must not win first: images not broken by it, the same images [N].
        significance: p-value below which the second is called weaker.

    Raises:
        ValueError: If there are not two arrays of one length, or no images.
    """
    if len(right) != 2 or len({len(rows) for rows in right.values()}) != 1 or not len(next(iter(right.values()))):
        raise ValueError(f"need two attacks on the same images, got {[(k, len(v)) for k, v in right.items()]}")
    (weak, first), (strong, second) = right.items()
    only_weak, only_strong = int((~first & second).sum()), int((first & ~second).sum())
    p_value = mcnemar(only_weak, only_strong, alternative="greater")
    return p_value >= significance, {
        f"accuracy_after_{weak}": float(np.mean(first)),
        f"accuracy_after_{strong}": float(np.mean(second)),
        "broken_by_the_first_only": only_weak,
        "broken_by_the_second_only": only_strong,
        "p_value": p_value,
    }


def fewest_discordant(significance: float = SIGNIFICANCE) -> int:
    """Images broken by one attack alone that `not_weaker` needs to fail; with fewer it passes whatever happened.

    The smallest n with 2^-n < significance: the p-value of n discordant images that are all on one side.
    """
    return math.floor(-math.log2(significance)) + 1


def seed_difference(baseline: Sequence[float], method: Sequence[float]) -> SeedDifference:
    """Mean of method - baseline over seeds, entry by entry the same seed.

    Student's t-interval: it takes the differences as normal, which few seeds cannot check.

    Raises:
        ValueError: If the sequences are empty or of different lengths.
    """
    from scipy import stats

    if len(baseline) != len(method) or not baseline:
        raise ValueError(f"a difference over seeds needs the same seeds; got {len(baseline)} and {len(method)}")
    differences = np.asarray(method, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    count, mean = len(differences), float(differences.mean())
    if count == 1:
        return SeedDifference(1, mean, None, None)
    std = float(differences.std(ddof=1))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * std / math.sqrt(count)
    return SeedDifference(count, mean, std, (mean - half, mean + half))
