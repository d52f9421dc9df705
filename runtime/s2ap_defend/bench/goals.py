"""What a defended file should cost at most, and whether it does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from s2ap_defend.bench.measured import BatchTimes, Measured
from s2ap_defend.bench.steady import Steady
from s2ap_defend.bench.traffic import Traffic
from s2ap_defend.decision_record import Purify
from s2ap_defend.executors import ExecutorName
from s2ap_defend.stages import CLASSIFIER

TIMES_BARE: dict[Purify, float] = {"always": 6.0, "suspicious": 3.0, "off": 3.0}
"""Cost of clean traffic at a batch of 64, by when images are purified."""
TIMES_BARE_SMALL = 15.0
"""The same of a classifier so small that what is there for every call counts."""
SMALL_FLOPS = 5_000_000
"""Of one image: classifiers below are small. Those of 8x8 digits have about a million, of 32x32 images 25."""
MORE_AT_ONE = 1.3
"""At a batch of 1 the cost may be so many times that at 64."""
OUTSIDE_SHARE, OUTSIDE_MS = 0.05, 0.150
"""Outside the engines: share of a call at a batch of 64, milliseconds at 1. The whole file decides inside its engine,
so what it takes beyond its stages is judged as well."""
EXPONENT = 1.05
GROWN_MB = 1.0
"""Memory that many batches in a row may take more, after the first tenth of them; allocators keep some."""
SOAK = 10_000
"""Fewer batches say little of memory."""
ROUNDS = 20
"""Medians of fewer decide nothing."""


@dataclass(frozen=True)
class Goal:
    """One thing that should hold.

    Attributes:
        executor: Whose time it is.
        what: In words.
        most: What is wanted at most.
        found: What was measured.
        unit: Of both, such as 'x' or ' ms'.
        batch: At which; None: over all.
    """

    executor: ExecutorName
    what: str
    most: float
    found: float
    unit: str
    batch: int | None

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.found <= self.most


def goals(measured: Measured, traffic: Traffic, purify: Purify) -> list[Goal]:
    """What these times can judge of a file; its cost on clean images and the CPU alone."""
    return list(_goals(measured, traffic, purify))


def not_judged(measured: Measured, traffic: Traffic) -> list[str]:
    """What these times cannot say, and why."""
    sizes = {one.batch for one in measured.batches}
    reasons = [f"a batch of {size} was not measured" for size in (1, 64) if size not in sizes]
    if not _cost_counts(measured, traffic):
        on = "uniform noise" if not traffic.typical else f"{traffic.kind} traffic"
        where = on if measured.provider == "CPUExecutionProvider" else f"{on} on {measured.provider}"
        reasons.append(f"multiples of the bare classifier are for clean images on the CPU, this was {where}")
    if measured.rounds < ROUNDS:
        reasons.append(f"medians are of {measured.rounds} rounds; they count from {ROUNDS} on")
    if len(sizes) < 2:
        reasons.append("growth of time needs two batch sizes")
    reasons += [
        f"{name}: memory over {one.batches:,} batches; it counts from {SOAK:,} on, where the system tells"
        for name, one in measured.steady.items()
        if one.batches < SOAK or one.grown_bytes is None
    ]
    return reasons


def elsewhere(measured: Measured) -> list[str]:
    """What should hold and was not measured, and what measures it."""
    soak = f"memory and verdicts over {SOAK:,} batches, and of 8 threads at once: --soak {SOAK}"
    return [
        *([] if measured.steady else [soak]),
        "time flat in members that are not asked: benchmarks/latency.py of the source",
        "ten times faster than the published serial protocol, with what both detect: benchmarks/peers.py of the source",
    ]


def _cost_counts(measured: Measured, traffic: Traffic) -> bool:
    return traffic.kind == "clean" and traffic.typical and measured.provider == "CPUExecutionProvider"


def _goals(measured: Measured, traffic: Traffic, purify: Purify) -> Iterator[Goal]:
    work = measured.work[CLASSIFIER]
    small = work is not None and work.flops < SMALL_FLOPS
    most = TIMES_BARE_SMALL if small else TIMES_BARE[purify]
    by_size = {one.batch: one for one in measured.batches}
    for name in measured.batches[0].executors:
        if _cost_counts(measured, traffic):
            for batch, limit in ((1, None if small else MORE_AT_ONE * most), (64, most)):
                if batch in by_size and limit is not None:
                    what = f"batch {batch}: cost with purification '{purify}'"
                    yield Goal(name, what, limit, by_size[batch].executors[name].times_bare, "x", batch)
        yield from _overhead(name, by_size)
        slope = measured.exponents[name]
        if slope is not None:
            yield Goal(name, "exponent of time in batch", EXPONENT, slope, "", None)
        if name in measured.steady:
            yield from _steadiness(name, measured.steady[name])


def _overhead(name: ExecutorName, by_size: Mapping[int, BatchTimes]) -> Iterator[Goal]:
    if 1 in by_size:
        one = by_size[1]
        yield Goal(name, "batch 1: outside the engines", OUTSIDE_MS, one.outside_ms[name], " ms", 1)
        if name == "whole":
            yield Goal(name, "batch 1: beyond the stages", OUTSIDE_MS, one.beyond_ms[name], " ms", 1)
    if 64 in by_size:
        many = by_size[64]
        yield Goal(name, "batch 64: outside the engines", OUTSIDE_SHARE, many.outside_share[name], "share", 64)
        if name == "whole":
            yield Goal(name, "batch 64: beyond the stages", OUTSIDE_SHARE, many.beyond_share[name], "share", 64)


def _steadiness(name: ExecutorName, steady: Steady) -> Iterator[Goal]:
    if steady.batches >= SOAK and steady.grown_bytes is not None:
        what = f"memory grown over {steady.batches:,} batches in a row, after the first tenth"
        yield Goal(name, what, GROWN_MB, steady.grown_bytes / 1e6, " MB", None)
    yield Goal(name, f"other verdicts among {steady.batches:,} batches in a row", 0, steady.different, "", None)
    what = f"other verdicts among {steady.threads_batches} batches of {steady.threads} threads at once"
    yield Goal(name, what, 0, steady.threads_different, "", None)
