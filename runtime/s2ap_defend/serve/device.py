"""The one thread that owns the device: batches in, outcomes out."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from s2ap_defend.errors import DefendError, EngineError
from s2ap_defend.types import Float32, Verdicts

logger = logging.getLogger(__name__)

Classify = Callable[[Float32], Verdicts]
Outcome = Verdicts | DefendError | None


class Run(NamedTuple):
    """A run of the model, or of stages of it: their name, when it began and ended, by time.perf_counter_ns."""

    stages: str
    began_ns: int
    ended_ns: int


OnPart = Callable[[int, Outcome, list[Run]], None]


@dataclass(frozen=True)
class BatchResult:
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


@dataclass(frozen=True)
class Batch:
    """Parts that were handed over together; see `Device.run`."""

    parts: Sequence[Float32]
    is_wanted: Callable[[int], bool]
    on_part: OnPart
    on_done: Callable[[BatchResult], None]


class Device:
    """Runs one batch at a time; when a batch fails, its rows run alone once, so that a poisoned row fails alone.

    Args:
        classify: The model: images [N, C, H, W] to N verdicts. Called by one thread only.
        loop: The event loop on which callers are told.

    Attributes:
        takes_more: Whether parts may be handed over while it runs others.
    """

    takes_more = False

    def __init__(self, classify: Classify, loop: asyncio.AbstractEventLoop) -> None:
        self._classify = classify
        self._loop = loop
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="s2ap-device", daemon=True)
        self._thread.start()

    def run(
        self,
        parts: Sequence[Float32],
        is_wanted: Callable[[int], bool],
        on_part: OnPart,
        on_done: Callable[[BatchResult], None],
    ) -> None:
        """Run parts [Ni, C, H, W] as one batch.

        Args:
            parts: The images of each request.
            is_wanted: Whether somebody still waits for the part of this index; asked before retries, on the thread.
            on_part: Called on the event loop with a part's index, outcome and runs, where it is done before others.
            on_done: Called on the event loop, once, with all outcomes.
        """
        self._batches.put(Batch(parts, is_wanted, on_part, on_done))

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

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            self._tell(batch.on_done, self._run(batch))
            del batch  # its images must not live on while this thread waits
        self._tell(self._stopped.set)

    def _run(self, batch: Batch) -> BatchResult:
        started = time.perf_counter_ns()
        parts = batch.parts
        images = parts[0] if len(parts) == 1 else np.concatenate(parts)
        prepared = time.perf_counter_ns()
        whole = self._attempt(images)
        outcomes: list[Outcome]
        if isinstance(whole, DefendError):
            retry = len(images) > 1
            outcomes = [self._row_by_row(batch, i) for i in range(len(parts))] if retry else [whole]
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
            runs=[[Run("whole", prepared, computed)]] * len(parts),
        )

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

    def _attempt(self, images: Float32) -> Verdicts | DefendError:
        try:
            verdicts = self._classify(images)
            if len(verdicts) != len(images):
                raise EngineError(f"the model gave {len(verdicts)} verdicts for {len(images)} images")
        except Exception as error:
            return failure_of(error, len(images))
        return verdicts

    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            logger.warning("a batch ended after its event loop had closed")


def failure_of(error: Exception, rows: int) -> DefendError:
    """What callers are told of a batch that failed; the log has the whole error."""
    if isinstance(error, DefendError):
        logger.warning("a batch of %d images failed: %s", rows, error)
        return error
    logger.error("a batch of %d images failed", rows, exc_info=error)
    failure = EngineError(f"the model failed: {type(error).__name__}")
    failure.__cause__ = error
    return failure
