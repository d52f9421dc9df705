"""The one thread that owns the device: batches in, outcomes out."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from s2ap_defend.errors import DefendError, EngineError
from s2ap_defend.executors.stages import OnRun
from s2ap_defend.serve.errors import UnavailableError
from s2ap_defend.types import Float32, Verdicts

logger = logging.getLogger(__name__)

Classify = Callable[[Float32], Verdicts]
Outcome = Verdicts | DefendError | None
OnBroken = Callable[[DefendError], None]

BROKEN = "the engine of the model failed and is started again; try again later"


class Run(NamedTuple):
    """A run of the model, or of stages of it: their name, when it began and ended, by time.perf_counter_ns."""

    stages: str
    began_ns: int
    ended_ns: int


OnPart = Callable[[int, Outcome, list[Run]], None]


class BatchResult(NamedTuple):
    """Outcomes of the parts of one batch, and what they cost.

    Attributes:
        outcomes: For every part its verdicts, its error, or None when nobody waits for it any more.
        rows: Images in the batch.
        started_ns: When it started, by time.perf_counter_ns.
        input_ns: Time to put the batch together.
        compute_ns: Time in the model, retries included.
        output_ns: Time to take the answer apart.
        runs: For every part the runs that its images were in.
    """

    outcomes: list[Outcome]
    rows: int
    started_ns: int
    input_ns: int
    compute_ns: int
    output_ns: int
    runs: list[list[Run]]


class BatchReport(NamedTuple):
    """A batch that ran: its result, and how long each of its requests, or parts of one, had waited."""

    result: BatchResult
    queue_ns: tuple[int, ...]


class Batch(NamedTuple):
    """Parts that were handed over together; see `Device.run`."""

    parts: Sequence[Float32]
    is_wanted: Callable[[int], bool]
    on_part: OnPart
    on_done: Callable[[BatchResult], None]
    every_stage: bool = False


class Device:
    """Runs one batch at a time; when a batch fails, its rows run alone once, so that a poisoned row fails alone.

    First the model is asked about images that it has answered before: when it fails on these too, it is broken, all of
    the batch fails with UnavailableError, and so does what comes later.

    Args:
        classify: The model: images [N, C, H, W] to N verdicts. Called by one thread only.
        loop: The event loop on which it calls back.
        on_broken: Called there with the error when the model is broken, or the thread has ended by an error.
        observe: Tells the model what to call after every run of its engines; without it a batch is one run.

    Attributes:
        takes_more: Whether parts may be handed over while it runs others.
        known: Images that the model has answered; without them nobody finds out that it is broken.
    """

    takes_more = False

    def __init__(
        self,
        classify: Classify,
        loop: asyncio.AbstractEventLoop,
        on_broken: OnBroken | None = None,
        observe: Callable[[OnRun | None], None] | None = None,
    ) -> None:
        self.known: Float32 | None = None
        self._classify = classify
        self._loop = loop
        self._on_broken = on_broken
        self._observe = observe
        self._runs: list[Run] = []  # of what the model does now
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._owed = 0  # batches that were handed over and whose outcomes are not there yet
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._live, name="s2ap-device", daemon=True)
        self._thread.start()

    def run(
        self,
        parts: Sequence[Float32],
        is_wanted: Callable[[int], bool],
        on_part: OnPart,
        on_done: Callable[[BatchResult], None],
        *,
        every_stage: bool = False,
    ) -> None:
        """Run parts [Ni, C, H, W] as one batch.

        Args:
            parts: The images of each request.
            is_wanted: Whether somebody still waits for the part of this index; asked before retries, on the thread.
            on_part: Called on the event loop with a part's index, outcome and runs, where it is done before others.
            on_done: Called on the event loop, once, with all outcomes.
            every_stage: Whether stages run first, too, that these images do not ask; of a model that goes by stages.
        """
        self._owed += 1
        self._batches.put(Batch(parts, is_wanted, on_part, on_done, every_stage))

    @property
    def idle(self) -> bool:
        """Whether its thread has nothing to do; asked on the event loop."""
        return not self._owed

    def run_here(self, images: Float32) -> tuple[Verdicts, BatchResult] | None:
        """Run images [N, C, H, W] as one batch on the calling thread, which is that of the event loop.

        Only while it is idle: the model is called by one thread at a time. None where the model fails; `run` finds out
        then whether it is the images.
        """
        started, self._runs = time.perf_counter_ns(), []
        try:
            verdicts = self._classify(images)
        except (Exception, SystemExit):  # the thread ends by the latter, the event loop may not
            return None
        if len(verdicts) != len(images):
            return None
        ended = time.perf_counter_ns()
        runs = self._runs or [Run("whole", started, ended)]
        return verdicts, BatchResult([verdicts], len(images), started, 0, ended - started, 0, [runs])

    async def close(self, timeout_s: float) -> bool:
        """Stop after the batches at hand; whether the thread ended in time."""
        self._batches.put(None)
        try:
            async with asyncio.timeout(timeout_s):
                await self._stopped.wait()
        except TimeoutError:
            return False
        self._thread.join()
        return True

    def _live(self) -> None:
        try:
            if self._observe is not None:
                self._observe(lambda *run: self._runs.append(Run(*run)))
            self._work()
            if self._observe is not None:
                self._observe(None)
        except BaseException as error:
            logger.exception("the thread of the device ended")
            self._tell_broken(EngineError(f"the thread of the device ended: {type(error).__name__}"))
        self._tell(self._stopped.set)

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            self._tell(self._done, batch.on_done, self._run(batch))
            del batch  # its images must not live on while this thread waits

    def _run(self, batch: Batch) -> BatchResult:
        started = time.perf_counter_ns()
        parts = batch.parts
        images = parts[0] if len(parts) == 1 else np.concatenate(parts)
        prepared, self._runs = time.perf_counter_ns(), []
        whole = self._attempt(images)
        outcomes: list[Outcome]
        if isinstance(whole, DefendError):
            outcomes, self._runs = self._after_failure(batch, range(len(parts)), whole, len(images)), []
            computed = time.perf_counter_ns()
        else:
            computed = time.perf_counter_ns()
            outcomes, first = [whole], 0
            if len(parts) > 1:
                outcomes = []
                for part in parts:
                    outcomes.append(whole.rows(slice(first, first + len(part))))
                    first += len(part)
        finished = time.perf_counter_ns()
        return BatchResult(
            outcomes=outcomes,
            rows=len(images),
            started_ns=started,
            input_ns=prepared - started,
            compute_ns=computed - prepared,
            output_ns=finished - computed,
            runs=[self._runs or [Run("whole", prepared, computed)]] * len(parts),
        )

    def _done(self, tell: Callable[[BatchResult], None], result: BatchResult) -> None:
        self._owed -= 1
        tell(result)

    def _after_failure(self, batch: Batch, indices: Iterable[int], failure: DefendError, rows: int) -> list[Outcome]:
        """Outcomes of those parts of a batch that failed, among so many rows."""
        if self._is_broken():
            return [UnavailableError(BROKEN) for _ in indices]
        return [failure if rows == 1 else self._row_by_row(batch, index) for index in indices]

    def _is_broken(self) -> bool:
        """Whether the model fails on what it has answered before."""
        if self.known is None or not isinstance(error := self._attempt(self.known), DefendError):
            return False
        self._tell_broken(error)
        return True

    def _row_by_row(self, batch: Batch, index: int) -> Outcome:
        images = batch.parts[index]
        rows: list[Verdicts] = []
        for i in range(len(images)):
            if not batch.is_wanted(index):
                return None
            outcome = self._attempt(images[i : i + 1])
            if isinstance(outcome, DefendError):
                return outcome
            rows.append(outcome)
        return Verdicts.concatenate(rows)

    def _attempt(self, images: Float32, classify: Classify | None = None) -> Verdicts | DefendError:
        try:
            verdicts = (classify or self._classify)(images)
            if len(verdicts) != len(images):
                raise EngineError(f"the model gave {len(verdicts)} verdicts for {len(images)} images")
        except Exception as error:
            return failure_of(error, len(images))
        return verdicts

    def _tell_broken(self, error: DefendError) -> None:
        if self._on_broken is not None:
            self._tell(self._on_broken, error)

    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            logger.warning("a batch ended after its event loop had closed")


def failure_of(error: Exception, rows: int) -> DefendError:
    """What callers hear of a batch that failed; the log has the whole error."""
    if isinstance(error, DefendError):
        logger.warning("a batch of %d images failed: %s", rows, error)
        return error
    logger.error("a batch of %d images failed", rows, exc_info=error)
    failure = EngineError(f"the model failed: {type(error).__name__}")
    failure.__cause__ = error
    return failure
