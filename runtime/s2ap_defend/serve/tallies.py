"""Counters and histograms that one thread counts: plain numbers, read at a scrape.

prometheus-client's own take a lock and half a dozen calls whenever they count, which a request would pay many times.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

__all__ = ["Count", "Counter", "Histogram", "Spread"]


class Count:
    """How often something happened."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        """Count it."""
        self.value += by


class Spread:
    """How numbers are spread over buckets; a scrape sees those of the last `publish`.

    Args:
        bounds: Upper bounds of the buckets, ascending; another one without a bound comes behind them.
    """

    __slots__ = ("_bounds", "_counts", "_total", "shown")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self.publish()

    def observe(self, numbers: Sequence[float]) -> None:
        """Count numbers."""
        for number in numbers:
            self._counts[bisect.bisect_left(self._bounds, number)] += 1
        self._total += sum(numbers)

    def publish(self) -> None:
        """Show all numbers until now: how many in each bucket, and their sum."""
        self.shown = (self._counts.copy(), self._total)


C = TypeVar("C", Count, Spread)


class _Family(Collector, Generic[C]):
    """One of them for every combination of labels.

    Args:
        name: As scrapes have it.
        text: What is counted.
        labels: Their names.
        registry: What it is scraped with.
    """

    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._found: dict[tuple[str, ...], C] = {}
        registry.register(self)


class Counter(_Family[Count]):
    """A counter."""

    def labels(self, *values: str) -> Count:
        """The one with these labels."""
        return self._found.setdefault(values, Count())

    def collect(self) -> Iterator[Metric]:
        """Metrics of a scrape."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in self._found.items():
            family.add_metric(values, count.value)
        yield family


class Histogram(_Family[Spread]):
    """A histogram.

    Args:
        bounds: Of its buckets.
        live: Whether scrapes see all numbers at once; otherwise those until `Spread.publish`.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        registry: CollectorRegistry,
        *,
        bounds: tuple[float, ...],
        live: bool,
    ) -> None:
        self._bounds, self._live = bounds, live
        self._names = [*map(floatToGoString, bounds), "+Inf"]
        super().__init__(name, text, labels, registry)

    def labels(self, *values: str) -> Spread:
        """The one with these labels."""
        return self._found.setdefault(values, Spread(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """Metrics of a scrape."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, spread in self._found.items():
            if self._live:
                spread.publish()
            counts, total = spread.shown
            family.add_metric(values, list(zip(self._names, _cumulative(counts), strict=True)), total)
        yield family


def _cumulative(counts: list[int]) -> Iterator[float]:
    total = 0
    for count in counts:
        total += count
        yield float(total)
