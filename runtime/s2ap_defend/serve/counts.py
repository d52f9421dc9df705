"""What is counted of one model's answers, whichever of its files gave them."""

import numpy as np

from s2ap_defend.drift import DriftMonitor
from s2ap_defend.serve.device import BatchReport
from s2ap_defend.serve.metrics import SUCCESS, ModelMetrics
from s2ap_defend.serve.statistics import Statistics
from s2ap_defend.types import Bool, Float64, Verdicts

__all__ = ["Counts"]

WINDOW_ROWS = 1000  # images whose times are published together
LOOK_ROWS = 64  # that the drift monitor sees together, not batch by batch


class Counts:
    """Metrics, statistics and drift of one model.

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
        self._unseen: list[tuple[Float64, Bool]] = []  # by the drift monitor: ratios, and what was flagged
        self._unseen_rows = 0

    def watch(self, drift: DriftMonitor | None) -> None:
        """Publish what this monitor says from now on; None: there is none."""
        self._drift = drift
        self._unseen, self._unseen_rows = [], 0
        self._publish_drift()

    def count_batch(self, report: BatchReport, drift: DriftMonitor | None) -> None:
        """Count a batch, which this monitor sees as well, unless another one has come after it."""
        self.metrics.count_batch(report)
        self.statistics.count_batch(report)
        self._timed_rows += report.result.rows
        if self._timed_rows >= WINDOW_ROWS:
            self._timed_rows = 0
            self.metrics.publish_times()
            self.statistics.publish_times()
        if drift is not None and drift is self._drift:
            for outcome in report.result.outcomes:
                if isinstance(outcome, Verdicts):
                    self._unseen.append((outcome.log_likelihood_ratio, outcome.adversarial))
                    self._unseen_rows += len(outcome)
                    if self._unseen_rows >= min(LOOK_ROWS, drift.window - self._drift_rows):
                        self.catch_up()

    def count_request(self, outcome: str, duration_ns: int, protocol: str = "http") -> None:
        """Count one finished request; names as in the metrics."""
        self.metrics.count_request(outcome, duration_ns / 1e9, protocol)
        self.statistics.count_request(outcome == SUCCESS, duration_ns)

    def catch_up(self) -> None:
        """Let the drift monitor see what was served since it last did; call it before what it says is read.

        Without evidence it speaks once a window, about all of it: a mean of p-values before and after one request would
        tell the rank of its log-likelihood ratio.
        """
        if self._drift is None or not self._unseen:
            return
        ratios, flagged = (np.concatenate(parts) for parts in zip(*self._unseen, strict=True))
        self._drift.observe_ratios(ratios, flagged)
        self._drift_rows += self._unseen_rows
        self._unseen, self._unseen_rows = [], 0
        if self._live or self._drift_rows >= self._drift.window:
            self._publish_drift()

    def _publish_drift(self) -> None:
        self._drift_rows = 0
        report = None if self._drift is None else self._drift.report()
        self.metrics.set_drift(report)
        self.statistics.drift = report
