"""Counters and histograms of plain numbers: a scrape of them reads as one of prometheus-client's own."""

import numpy as np
import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest

from s2ap_defend.serve.tallies import Counter, Histogram

BOUNDS = (0.0, 0.5, 1.0, 30.0)


def scraped(registry: CollectorRegistry) -> list[str]:
    """The lines of a scrape, without when each series began."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_a_scrape_reads_as_prometheus_clients_own():
    plain, own = CollectorRegistry(), CollectorRegistry()
    about = ("asked", "What was asked.", ("model", "outcome"))
    counters = Counter(*about, plain), prometheus_client.Counter(*about, registry=own)
    about = ("took_seconds", "How long.", ("model",))
    histograms = (
        Histogram(*about, plain, bounds=BOUNDS, live=True),
        prometheus_client.Histogram(*about, buckets=BOUNDS, registry=own),
    )
    numbers = [0.0, 0.5, 0.50001, 1.0, 31.0, *np.random.default_rng(0).exponential(1.0, 50).tolist()]
    for counter, histogram in zip(counters, histograms, strict=True):
        counter.labels("a", "success").inc()
        counter.labels("a", "success").inc(3)
        counter.labels('"b"\n', "none")
        histogram.labels("b")
    for number in numbers:
        histograms[1].labels("a").observe(number)
    histograms[0].labels("a").observe(numbers[:30])
    histograms[0].labels("a").observe(numbers[30:])
    assert scraped(plain) == scraped(own)


def test_what_is_not_live_is_shown_as_it_was_when_it_was_published():
    registry = CollectorRegistry()
    spread = Histogram("took", "How long.", (), registry, bounds=BOUNDS, live=False).labels()
    spread.observe([0.4])
    before = scraped(registry)
    assert "took_count 0.0" in before
    spread.publish()
    spread.observe([0.4])
    assert [line for line in scraped(registry) if line not in before] == [
        'took_bucket{le="0.5"} 1.0',
        'took_bucket{le="1.0"} 1.0',
        'took_bucket{le="30.0"} 1.0',
        'took_bucket{le="+Inf"} 1.0',
        "took_count 1.0",
        "took_sum 0.4",
    ]
