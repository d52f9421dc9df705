"""Rounds in which all variants take turns, and what their times say."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from s2ap_defend.bench.choices import Clock
from s2ap_defend.types import Float64

CLOCKS: Mapping[Clock, Callable[[], int]] = MappingProxyType(
    {"wall": time.perf_counter_ns, "processor": time.process_time_ns}
)
Variant = Sequence[Callable[[], object]]
"""The calls of one variant in a round."""
CALLS_FOR_P95 = 20
CALLS_FOR_P99 = 100


@dataclass(frozen=True)
class Latency:
    """Times of one variant's calls.

    Attributes:
        p50_ms: Median of a call.
        p95_ms: None where fewer than 20 calls were timed.
        p99_ms: None where fewer than 100 calls were timed.
        images_per_s: Of the typical round, as all that follows.
        times_bare: As a multiple of the bare classifier's, on the same images.
        times_floor: As a multiple of the floor; None where operations could not be counted.
    """

    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    images_per_s: float
    times_bare: float
    times_floor: float | None


def alternate(
    variants: Mapping[str, Variant],
    rounds: int,
    *,
    clock: Clock = "wall",
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, Float64]:
    """Seconds of every call [rounds, calls], after one round to warm up that is not counted.

    Every round runs all calls of every variant, one variant after the other, so that whatever slows the machine for
    longer than a round slows them all.
    """
    now = CLOCKS[clock]
    seconds = {name: np.zeros((rounds, len(calls))) for name, calls in variants.items()}
    for number in range(rounds + 1):
        for name, calls in variants.items():
            for i, call in enumerate(calls):
                began = now()
                call()
                seconds[name][number - 1, i] = (now() - began) / 1e9  # the first round is overwritten by the last
        after_round()
    return seconds


def latency(seconds: Float64, bare: Float64, images: int, floor_s: float | None) -> Latency:
    """What the times of a variant say.

    Args:
        seconds: Of its calls [rounds, calls].
        bare: Of the bare classifier's, on the same images in the same rounds [rounds, calls].
        images: Of one round.
        floor_s: Seconds that a call needs at least, on average.
    """
    p50, p95, p99 = (1e3 * float(np.quantile(seconds, q)) for q in (0.5, 0.95, 0.99))
    return Latency(
        p50_ms=p50,
        p95_ms=p95 if seconds.size >= CALLS_FOR_P95 else None,
        p99_ms=p99 if seconds.size >= CALLS_FOR_P99 else None,
        images_per_s=images / typical_round(seconds),
        times_bare=typical_round(seconds) / typical_round(bare),
        times_floor=typical_round(seconds) / seconds.shape[1] / floor_s if floor_s else None,
    )


def typical_round(seconds: Float64) -> float:
    """Seconds of a round whose every call [rounds, calls] takes its median over the rounds.

    A call has the same images in all rounds, so what else the machine does in some of them does not count.
    """
    return float(np.median(seconds, axis=0).sum())


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float | None:
    """Slope of the line through log seconds over log sizes: 1 where time grows in proportion; None of fewer than 2."""
    if len(set(sizes)) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
