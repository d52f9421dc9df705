"""Prometheus metrics of a server; every label has a small, fixed set of values.

What is evidence in an answer is evidence here too: members asked, label change rates and corrections of single
requests could be read off two scrapes, so they are only counted when the server exposes evidence. Times tell how many
members were asked; without evidence they are published a whole window of images at a time, and the processor's time is
not. What the drift monitor says is about whole windows as well; the service decides when one ends.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector
from prometheus_client import Counter as ThreadsCounter
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from s2ap_defend.drift import DriftReport
from s2ap_defend.serve import tallies
from s2ap_defend.serve.statistics import Answered, Finished, Ran

SUCCESS, CANCELLED, ERROR = "success", "cancelled", "error"
REJECTIONS = ("unavailable", "queue_full", "rate_limited", "too_large", "deadline", "timeout")
DENIALS = ("unauthenticated", "forbidden")
PROTOCOLS = ("http", "grpc")
OUTCOMES = (SUCCESS, CANCELLED, ERROR, "invalid", "not_found", "unauthenticated", *REJECTIONS)
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
RATES = tuple(i / 20 for i in range(21))
VERDICTS = ("clean", "adversarial", "undecided")
MODEL_LABELS = ("model", "version")
LOADS = ("loaded", "failed")


class Metrics:
    """The metrics of a server, for each of its models.

    Args:
        build: What is running, for s2ap_build_info.
        evidence: Whether metrics may tell what single answers hide.
    """

    def __init__(self, *, build: dict[str, str], evidence: bool) -> None:
        self._registry = registry = CollectorRegistry()
        self.evidence = evidence

        def counter(name: str, text: str, *labels: str) -> tallies.Counter:
            return tallies.Counter(name, text, (*MODEL_LABELS, *labels), registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, MODEL_LABELS, registry=registry)

        def histogram(
            name: str, text: str, bounds: tuple[float, ...], *labels: str, live: bool = True
        ) -> tallies.Histogram:
            return tallies.Histogram(name, text, (*MODEL_LABELS, *labels), registry, bounds=bounds, live=live)

        self.requests = counter("s2ap_inference_requests", "Inference requests by outcome.", "protocol", "outcome")
        self.rejected = counter("s2ap_inference_rejected", "Requests turned away, by reason.", "reason")
        self.denied = counter(
            "s2ap_access_denied", "Requests whose key is missing, unknown or lacks a right, by reason.", "reason"
        )
        self.compute = histogram(
            "s2ap_inference_compute_duration_seconds",
            "Time of a batch on the device, by stage.",
            SECONDS,
            "stage",
            live=evidence,
        )
        self.verdicts = counter("s2ap_defense_verdicts", "Images by verdict.", "verdict")
        self.rows = counter("s2ap_inference_rows", "Images answered.")
        self.batches = counter("s2ap_inference_batches", "Batches run.")
        self.duration = histogram(
            "s2ap_inference_request_duration_seconds",
            "Time from a request's head to its answer.",
            SECONDS,
            live=evidence,
        )
        self.queue = histogram(
            "s2ap_inference_queue_duration_seconds", "Time that requests waited.", SECONDS, live=evidence
        )
        self.batch_rows = histogram("s2ap_inference_batch_rows", "Images in a batch.", POWERS)
        self.ready = gauge("s2ap_model_ready", "1 when the model takes requests.")
        self.loads = counter("s2ap_model_loads", "Loads of a model file while the server runs, by outcome.", "outcome")
        self.failures = counter("s2ap_engine_failures", "Engines that failed and were given up.")
        self.pending_requests = gauge("s2ap_inference_pending_requests", "Requests that wait or run.")
        self.pending_rows = gauge("s2ap_inference_pending_rows", "Images that wait or run.")
        self._dropped = ThreadsCounter(
            "s2ap_log_records_dropped", "Records of the log that nobody read fast enough.", registry=registry
        )
        if evidence:
            self.members = histogram("s2ap_defense_members_used", "Members asked for an image.", POWERS)
            self.rates = histogram("s2ap_defense_label_change_rate", "Share of members that disagree.", RATES)
            self.corrections = counter(
                "s2ap_defense_corrections", "Flagged images that got another label than the classifier's."
            )
        self.drift = {
            "drifted": gauge("s2ap_drift_detected", "1 once served images differ from the calibration images."),
            "window": gauge("s2ap_drift_window_rows", "Images that the drift statistics are about."),
            "statistic": gauge("s2ap_drift_ks_statistic", "Distance of conformal p-values from uniform."),
            "p_value": gauge("s2ap_drift_p_value", "P-value of that distance at one look."),
            "mean_p_value": gauge("s2ap_drift_mean_p_value", "Mean conformal p-value; 0.5 without drift."),
            "log_martingale": gauge("s2ap_drift_log_martingale", "Evidence against no drift, in nats."),
        }
        Info("s2ap_build", "What is running.", registry=registry).info(build)
        (ProcessCollector if evidence else _Process)(registry=registry)

    def export_expiry(self, expires_s: Callable[[], float]) -> None:
        """Export when the certificate ends, in seconds since 1970."""
        Gauge(
            "s2ap_tls_certificate_expiry_timestamp_seconds",
            "When the certificate of this server ends, in seconds since 1970.",
            registry=self._registry,
        ).set_function(expires_s)

    def count_dropped(self) -> None:
        """Count a record of the log that was dropped; from any thread."""
        self._dropped.inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """(body, content type) of a scrape, in the format that the Accept header prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class ModelMetrics:
    """Counts what a server does for one model.

    Args:
        server: The metrics of the server.
        model: Name of the model.
        version: Its version.
        pending_requests: Returns the requests that wait or run now.
        pending_rows: Returns their images.
    """

    def __init__(
        self,
        server: Metrics,
        model: str,
        version: str,
        *,
        pending_requests: Callable[[], float],
        pending_rows: Callable[[], float],
    ) -> None:
        self._server = server
        self._labels = (model, version)
        own = self._labels
        self._requests = {
            (protocol, outcome): server.requests.labels(*own, protocol, outcome)
            for protocol in PROTOCOLS
            for outcome in OUTCOMES
        }
        self._rejected = {reason: server.rejected.labels(*own, reason) for reason in REJECTIONS}
        self._denied = {reason: server.denied.labels(*own, reason) for reason in DENIALS}
        self._verdicts = {verdict: server.verdicts.labels(*own, verdict) for verdict in VERDICTS}
        self._loads = {outcome: server.loads.labels(*own, outcome) for outcome in LOADS}
        self._failures = server.failures.labels(*own)
        self._compute = server.compute.labels(*own, "whole")
        self._rows = server.rows.labels(*own)
        self._batches = server.batches.labels(*own)
        self._duration = server.duration.labels(*own)
        self._queue = server.queue.labels(*own)
        self._batch_rows = server.batch_rows.labels(*own)
        self._ready = server.ready.labels(*own)
        server.pending_requests.labels(*own).set_function(pending_requests)
        server.pending_rows.labels(*own).set_function(pending_rows)
        if server.evidence:
            self._members = server.members.labels(*own)
            self._rates = server.rates.labels(*own)
            self._corrections = server.corrections.labels(*own)
        self._drifting = False

    def set_ready(self, ready: bool | None) -> None:
        """Tell whether the model takes requests; None, NaN in a scrape, where nobody wants it to."""
        self._ready.set(math.nan if ready is None else float(ready))

    def count_load(self, outcome: str) -> None:
        """Count a load; `outcome` is one of LOADS."""
        self._loads[outcome].inc()

    def count_failure(self) -> None:
        """Count an engine that failed."""
        self._failures.inc()

    def count_denied(self, reason: str) -> None:
        """Count a request that is not let in; `reason` is one of DENIALS."""
        self._denied[reason].inc()

    def count_requests(self, finished: Sequence[Finished]) -> None:
        """Count finished requests and the images of their answers."""
        for of, times in Counter(map(itemgetter(0, 1), finished)).items():
            self._requests[of].inc(times)
            if of[1] in self._rejected:
                self._rejected[of[1]].inc(times)
        self._duration.observe([one.duration_ns / 1e9 for one in finished])
        answered = [one.answered for one in finished if one.answered is not None]
        if answered:
            self._count_verdicts(answered)

    def count_batches(self, batches: Sequence[Ran]) -> None:
        """Count batches."""
        self._batches.inc(len(batches))
        self._batch_rows.observe([ran.rows for ran in batches])
        self._compute.observe([ran.stages_ns[1] / 1e9 for ran in batches])
        self._queue.observe([waited_ns / 1e9 for ran in batches for waited_ns in ran.queue_ns])

    def publish_times(self) -> None:
        """Publish all times until now, at the end of a window."""
        for spread in (self._duration, self._queue, self._compute):
            spread.publish()

    def set_drift(self, report: DriftReport | None) -> None:
        """Publish what the drift monitor says; None: there is none."""
        for name, gauge in self._server.drift.items():
            if report is not None:
                gauge.labels(*self._labels).set(float(getattr(report, name)))
            elif self._drifting:
                gauge.remove(*self._labels)
        self._drifting = report is not None

    def _count_verdicts(self, answered: Sequence[Answered]) -> None:
        flagged = np.concatenate([one.adversarial for one in answered])
        abstained = np.concatenate([one.abstained for one in answered])
        adversarial, undecided = int(flagged.sum()), int((abstained & ~flagged).sum())
        self._rows.inc(len(flagged))
        self._verdicts["clean"].inc(len(flagged) - adversarial - undecided)
        self._verdicts["adversarial"].inc(adversarial)
        self._verdicts["undecided"].inc(undecided)
        for evidence in (one.evidence for one in answered if one.evidence is not None):
            self._corrections.inc(int(evidence.corrected.sum()))
            self._members.observe(evidence.members_used.tolist())
            self._rates.observe(evidence.label_change_rate.tolist())


class _Process(ProcessCollector):
    """The process without the processor's time, which tells how many members a request asked."""

    def collect(self) -> Iterable[Metric]:
        """Metrics of a scrape."""
        return [metric for metric in super().collect() if metric.name != "process_cpu_seconds"]
