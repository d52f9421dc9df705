"""The state of one server: the model, its batcher, and whether it takes requests."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np

from s2ap_defend import __version__
from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.drift import DriftMonitor
from s2ap_defend.errors import DefendError
from s2ap_defend.serve import extras
from s2ap_defend.serve.access import Access, Caller
from s2ap_defend.serve.batcher import Batcher, BatchReport
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.serve.errors import UnavailableError, UnknownModelError
from s2ap_defend.serve.keys import read_keys
from s2ap_defend.serve.metrics import Metrics
from s2ap_defend.serve.protocol import PUBLIC_OUTPUTS, InferRequest, ServedModel
from s2ap_defend.serve.shares import Shares
from s2ap_defend.serve.statistics import Statistics
from s2ap_defend.serve.stepping import asked
from s2ap_defend.serve.tickets import Ticket
from s2ap_defend.serve.watched import Watched, Watcher
from s2ap_defend.types import Bool, Float64, Verdicts

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "draining", "failed"]
STOP_TIMEOUT_S = 2.0
LOOK_ROWS = 64  # that the drift monitor sees together, not batch by batch
WINDOW_ROWS = 1000  # images whose times are published together


class Service:
    """Serves one classifier.

    Attributes:
        on_state: Called on the event loop when `state` has changed.
        state: 'starting' until the model is warm, then 'ready', 'draining' when the server is about to stop; 'failed'
            when the model could not even run once, and then `failure` says why.
        aborted: Whether what is unfinished is given up, because the server's grace is over.
        receiving: Bytes of bodies that have arrived and are not queued yet.
        access: Who may ask what.
        certificate: By which clients know the server, None without TLS.
        watcher: Reads files again that change while it serves.
        tracer: Makes spans of inference requests; None: nobody does.
    """

    def __init__(self, classifier: DefendedClassifier, config: ServerConfig) -> None:
        self.classifier = classifier
        self.config = config
        self.served = ServedModel(
            model=classifier.path.stem,
            shape=classifier.input_shape,
            classes=len(classifier.classes),
            outputs=Verdicts.FIELDS if config.expose_evidence else PUBLIC_OUTPUTS,
        )
        self.batcher = Batcher(
            asked(classifier),
            max_batch_rows=config.max_batch_rows,
            max_queue_rows=config.max_queue_rows,
            max_queue_bytes=config.max_queue_bytes,
            on_batch=self._count_batch,
        )
        self.statistics = Statistics(live=config.expose_evidence)
        references = classifier.manifest.test.calibration.reference_ratios
        self.drift = DriftMonitor(classifier.manifest) if references else None
        self.metrics = Metrics(
            self.served.model,
            self.served.version,
            build={"version": __version__, "provider": classifier.provider},
            evidence=config.expose_evidence,
            drift=self.drift is not None,
            pending_requests=lambda: self.batcher.pending_requests,
            pending_rows=lambda: self.batcher.pending_rows,
        )
        keys = None if config.keys is None else read_keys(config.keys)
        self.access = Access(keys, evidence=config.expose_evidence, on_denied=self.metrics.count_denied)
        self.certificate = config.certificate()
        self.watcher = Watcher(self._watched())
        self.tracer = extras.tracing().otlp_tracer() if config.otel else None
        self.state: State = "starting"
        self.on_state: list[Callable[[], None]] = []
        self.failure: DefendError | None = None
        self.aborted = False
        self.on_failure: Callable[[], None] | None = None
        self.receiving = Shares(config.max_queue_bytes)
        self._warm_up_task: asyncio.Task[None] | None = None
        self._unseen: list[tuple[Float64, Bool]] = []  # by the drift monitor: ratios, and what was flagged
        self._unseen_rows = 0
        self._drift_rows = 0
        self._timed_rows = 0
        if self.drift is not None:
            self._publish_drift(self.drift)

    async def start(self) -> None:
        """Start the batcher and begin to warm up; returns before the model is ready."""
        self.batcher.start()
        self.watcher.start()
        self._warm_up_task = asyncio.create_task(self._warm_up())

    def describe(self) -> str:
        """What it is doing, in one line."""
        batcher = self.batcher
        return (
            f"{self.state}: {batcher.pending_requests} requests wait or run, {batcher.queued_rows} images wait, "
            f"{self.receiving.total} bytes of bodies have arrived in part"
        )

    def drain(self) -> None:
        """Tell load balancers that no more requests should come; those that do are still served."""
        if self.state in {"starting", "ready"}:
            self._become("draining")
        self.metrics.set_ready(False)

    def abort(self) -> None:
        """Answer everything that waits or runs with 503."""
        self.aborted = True
        self.batcher.abort(UnavailableError("the server stopped before this request was answered"))

    async def stop(self) -> None:
        """Stop the batcher; a batch that does not end is left behind after two seconds."""
        self.drain()
        self.watcher.stop()
        if self._warm_up_task is not None:
            self._warm_up_task.cancel()
        if not await self.batcher.close(STOP_TIMEOUT_S):
            logger.warning("a batch is still running and was left behind")
        if self.tracer is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.tracer.close, STOP_TIMEOUT_S)

    def check_model(self, model: str, model_version: str | None) -> None:
        """Check the names of a URL.

        Raises:
            UnknownModelError: If another model or version is served here.
        """
        if model != self.served.model:
            raise UnknownModelError(f"there is no model {model[:80]!r}; this server has {self.served.model!r}")
        if model_version not in {None, self.served.version}:
            raise UnknownModelError(
                f"model {model!r} has no version {model_version[:20] if model_version else ''!r}; "
                f"it has {self.served.version!r}"
            )

    async def probe(self) -> None:
        """Ask the model about one grey image; it counts nowhere.

        Raises:
            EngineError: If the model fails.
        """
        await self.batcher.probe(np.full((1, *self.served.shape), 0.5, dtype=np.float32))

    def check_ready(self) -> None:
        """Check that requests are taken; a draining server still takes them.

        Raises:
            UnavailableError: If the model is not warm yet, or has failed.
        """
        if self.state in {"starting", "failed"}:
            raise UnavailableError("the model is not ready yet" if self.state == "starting" else "the model failed")

    def served_to(self, caller: Caller) -> ServedModel:
        """The model as this caller sees it."""
        return replace(self.served, outputs=Verdicts.FIELDS) if caller.evidence else self.served

    def enqueue(self, request: InferRequest, caller: Caller, arrived_s: float, left_s: float | None = None) -> Ticket:
        """Queue a request that arrived at `arrived_s` of the event loop's clock; see `Batcher.enqueue`.

        Its deadline is the earlier of its own timeout and `left_s` seconds, which its connection sets; None for none.

        Raises:
            RateLimitError: If its caller has asked about too many images already.
            TooLargeError: If it has more images than its caller may ask about, or than the queue holds.
            QueueFullError: If it finds no room, or would not be in time.
            DeadlineError: If it would not be in time even alone.
        """
        rows = len(request.images)
        caller.check(rows)
        deadline_s = arrived_s + min(
            math.inf if seconds is None else seconds for seconds in (request.timeout_s, left_s)
        )
        ticket = self.batcher.enqueue(request.images, priority=request.priority, deadline_s=deadline_s)
        caller.charge(rows)
        return ticket

    def _watched(self) -> Iterator[Watched]:
        if self.config.keys is not None:
            yield Watched("keys", [self.config.keys], self._read_keys)
        if self.certificate is not None:
            self.metrics.export_expiry(lambda certificate=self.certificate: certificate.expires_s)  # type: ignore[misc]
            yield Watched("certificate and its key", self.certificate.paths, self.certificate.renew)

    def _read_keys(self) -> None:
        if self.config.keys is not None:
            self.access.replace(read_keys(self.config.keys))

    def _become(self, state: State) -> None:
        self.state = state
        for tell in self.on_state:
            tell()

    async def _warm_up(self) -> None:
        started = time.perf_counter()
        try:
            for rows in sorted({1, self.config.max_batch_rows}):
                await self.batcher.warm_up(np.full((rows, *self.served.shape), 0.5, dtype=np.float32))
        except DefendError as error:
            self.failure = error
            self._become("failed")
            if self.on_failure is not None:
                self.on_failure()
            return
        if self.state == "starting":
            self._become("ready")
            self.metrics.set_ready(True)
            logger.info("ready: model %s, warm after %.1f s", self.served.model, time.perf_counter() - started)

    def _count_batch(self, report: BatchReport) -> None:
        self.metrics.count_batch(report)
        self.statistics.count_batch(report)
        self._timed_rows += report.result.rows
        if self._timed_rows >= WINDOW_ROWS:
            self._timed_rows = 0
            self.metrics.publish_times()
            self.statistics.publish_times()
        if self.drift is not None:
            for outcome in report.result.outcomes:
                if isinstance(outcome, Verdicts):
                    self._unseen.append((outcome.log_likelihood_ratio, outcome.adversarial))
                    self._unseen_rows += len(outcome)
                    if self._unseen_rows >= min(LOOK_ROWS, self.drift.window - self._drift_rows):
                        self.catch_up()

    def catch_up(self) -> None:
        """Let the drift monitor see what was served since it last did; call it before what it says is read.

        Without evidence it speaks once a window, about all of it: a mean of p-values before and after one request would
        tell the rank of its log-likelihood ratio.
        """
        if self.drift is None or not self._unseen:
            return
        ratios, flagged = (np.concatenate(parts) for parts in zip(*self._unseen, strict=True))
        self.drift.observe_ratios(ratios, flagged)
        self._drift_rows += self._unseen_rows
        self._unseen, self._unseen_rows = [], 0
        if self.config.expose_evidence or self._drift_rows >= self.drift.window:
            self._publish_drift(self.drift)

    def _publish_drift(self, drift: DriftMonitor) -> None:
        self._drift_rows = 0
        report = drift.report()
        self.metrics.set_drift(report)
        self.statistics.drift = report
