"""What is counted of one model's answers, whichever of its files gave them."""

import time
from typing import Any

import numpy as np

from s2ap_defend.drift import DriftMonitor
from s2ap_defend.serve.device import BatchReport
from s2ap_defend.serve.metrics import SUCCESS, ModelMetrics
from s2ap_defend.serve.statistics import Answered, Evidence, Finished, Ran, Statistics
from s2ap_defend.types import Verdicts

__all__ = ["Counts"]

WINDOW_ROWS = 1000  # images whose times are published together
LOOK_ROWS = 64  # images, or requests, that are counted together: one by one they would find the processor's caches cold


class Counts:
    """Metrics, statistics and drift of one model; `catch_up` comes before any of them is read.

    Args:
        metrics: Its metrics.
        live: Whether everything is published at once, because evidence is; otherwise by windows.

    Attributes:
        statistics: Its statistics.
    """

    def __init__(self, metrics: ModelMetrics, *, live: bool) -> None:
        self.metrics = metrics
        self.statistics = Statistics(live=live)
        self._live = live
        self._drift: DriftMonitor | None = None
        self._timed_rows = self._drift_rows = 0
        self._ran: list[Ran] = []  # these two are not counted yet
        self._finished: list[Finished] = []
        self._ran_rows = 0

    def watch(self, drift: DriftMonitor | None) -> None:
        """Publish what this monitor says from now on; None: there is none."""
        self.catch_up()
        self._drift = drift
        self._publish_drift()

    def count_batch(self, report: BatchReport, drift: DriftMonitor | None) -> None:
        """Count a batch, which this monitor sees as well, unless another one has come after it."""
        result, watched = report.result, drift is not None and drift is self._drift
        seen = [(one.log_likelihood_ratio, one.adversarial) for one in result.outcomes if isinstance(one, Verdicts)]
        stages_ns = (result.input_ns, result.compute_ns, result.output_ns)
        self._ran.append(Ran(result.rows, seen, stages_ns, report.queue_ns, time.time(), watched))
        self._ran_rows += result.rows
        self._timed_rows += result.rows
        window = WINDOW_ROWS if drift is None else drift.window
        if self._ran_rows >= min(LOOK_ROWS, window - self._drift_rows) or self._timed_rows >= WINDOW_ROWS:
            self.catch_up()

    def count_request(
        self, outcome: str, duration_ns: int, protocol: str = "http", verdicts: Verdicts | None = None
    ) -> None:
        """Count one finished request, names as in the metrics, and the verdicts that it got."""
        answered = None
        if verdicts is not None:
            evidence = None
            if self._live:
                evidence = Evidence(verdicts.corrected, verdicts.members_used, verdicts.label_change_rate)
            answered = Answered(verdicts.adversarial, verdicts.abstained, evidence)
        self._finished.append(Finished(protocol, outcome, duration_ns, answered))
        if len(self._finished) >= LOOK_ROWS:
            self._count_finished()

    def catch_up(self) -> None:
        """Count what ran and ended since this was last done.

        Without evidence times are published a window at a time, and the drift monitor speaks once a window, about all
        of it: a mean of p-values before and after one request would tell the rank of its log-likelihood ratio.
        """
        self._count_finished()
        batches, self._ran, self._ran_rows = self._ran, [], 0
        self.metrics.count_batches(batches)
        self.statistics.count_batches(batches)
        if self._timed_rows >= WINDOW_ROWS:
            self._timed_rows = 0
            self.metrics.publish_times()
            self.statistics.publish_times()
        seen = [part for ran in batches if ran.watched for part in ran.seen]
        if self._drift is None or not seen:
            return
        ratios, flagged = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        self._drift.observe_ratios(ratios, flagged)
        self._drift_rows += len(ratios)
        if self._live or self._drift_rows >= self._drift.window:
            self._publish_drift()

    def to_json(self, model: str, version: str) -> dict[str, Any]:
        """The statistics until now, as the protocol has them."""
        self.catch_up()
        return self.statistics.to_json(model, version)

    def _count_finished(self) -> None:
        finished, self._finished = self._finished, []
        if not finished:
            return
        self.metrics.count_requests(finished)
        for succeeded in (True, False):
            durations_ns = [one.duration_ns for one in finished if (one.outcome == SUCCESS) == succeeded]
            self.statistics.count_requests(durations_ns, succeeded=succeeded)

    def _publish_drift(self) -> None:
        self._drift_rows = 0
        report = None if self._drift is None else self._drift.report()
        self.metrics.set_drift(report)
        self.statistics.drift = report
