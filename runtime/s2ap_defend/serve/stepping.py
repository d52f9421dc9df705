"""The device of an executor that goes wave by wave: parts join between two waves and leave when they are decided."""

import asyncio
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import DefendError
from s2ap_defend.executors import Landed
from s2ap_defend.executors.constant import ConstantExecutor
from s2ap_defend.executors.flight import Flight
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.serve.device import Batch, BatchResult, Classify, Device, OnBroken, Outcome, Run, failure_of
from s2ap_defend.types import Int64, Verdicts

__all__ = ["Asked", "SteppingDevice", "asked", "computes", "start_device"]

Asked = Classify | StagedExecutor | ConstantExecutor
"""What a batcher asks: images [N, C, H, W] to N verdicts, or an executor of stages, wave by wave or all of them."""


def asked(classifier: DefendedClassifier) -> Asked:
    """What a batcher asks of a classifier, with checked images: its executor, or itself where it does more."""
    executor = classifier.executor
    if isinstance(executor, StagedExecutor | ConstantExecutor):
        return executor
    return executor.run if _is_plain(classifier) else classifier


def computes(classifier: DefendedClassifier) -> bool:
    """Whether a classifier does nothing but compute on the processor: nobody knows how long anything else can take."""
    return _is_plain(classifier) and classifier.provider == "CPUExecutionProvider"


def _is_plain(classifier: DefendedClassifier) -> bool:
    return type(classifier).__call__ is DefendedClassifier.__call__


def start_device(model: Asked, loop: asyncio.AbstractEventLoop, on_broken: OnBroken | None = None) -> Device:
    """The device that runs it; arguments as for `Device`."""
    if isinstance(model, StagedExecutor):
        return SteppingDevice(model, loop, on_broken)
    if isinstance(model, ConstantExecutor):
        return Device(model.run, loop, on_broken, model.observe)
    return Device(model, loop, on_broken)


@dataclass
class _Part:
    """A part in flight: where its images begin, what of them is finished, and what they ran in."""

    first: int
    rows: int
    numbers: list[Int64] = field(default_factory=list)
    verdicts: list[Verdicts] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return sum(map(len, self.numbers)) == self.rows

    def outcome(self) -> Verdicts:
        """Its verdicts in order."""
        return Verdicts.concatenate(self.verdicts).rows(np.argsort(np.concatenate(self.numbers)))


@dataclass
class _Riding:
    """A batch in flight: its parts by index, what is known of them, and what it has cost."""

    batch: Batch
    started_ns: int
    parts: dict[int, _Part] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    input_ns: int = 0
    compute_ns: float = 0.0
    output_ns: int = 0

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts.values())

    @property
    def done(self) -> bool:
        return len(self.outcomes) == len(self.batch.parts)

    def share(self, ran: Int64, runs: list[Run]) -> float:
        """Its images among those that ran; the parts that they are of take in the runs."""
        inside = 0
        for part in self.parts.values():
            rows = int(np.count_nonzero((ran >= part.first) & (ran < part.first + part.rows)))
            if rows:
                part.runs += runs
            inside += rows
        return inside / len(ran)

    def result(self) -> BatchResult:
        outcomes = [self.outcomes[i] for i in range(len(self.batch.parts))]
        return BatchResult(
            outcomes=outcomes,
            rows=self.rows,
            started_ns=self.started_ns,
            input_ns=self.input_ns,
            compute_ns=int(self.compute_ns),
            output_ns=self.output_ns,
            runs=[self.runs_of(i) for i in range(len(outcomes))],
        )

    def runs_of(self, index: int) -> list[Run]:
        """What a part ran in; nothing where nobody waited for it."""
        return self.parts[index].runs if index in self.parts else []


class SteppingDevice(Device):
    """Runs the waves of several batches at a time.

    A part is answered as soon as all of its images are decided, and images that are handed over meanwhile begin before
    the next wave. When a wave fails, all that is in flight runs row by row once.

    Args:
        executor: What runs; by one thread only.
        loop: The event loop on which it calls back.
        on_broken: As for `Device`.
    """

    takes_more = True

    def __init__(
        self, executor: StagedExecutor, loop: asyncio.AbstractEventLoop, on_broken: OnBroken | None = None
    ) -> None:
        self._executor = executor
        self._flight = Flight()
        self._riding: list[_Riding] = []
        super().__init__(executor.run, loop, on_broken, executor.observe)

    def _work(self) -> None:
        stopping = False
        while not stopping or self._riding:
            for batch in self._handed_over():
                if batch is None:
                    stopping = True
                else:
                    self._board(batch)
            self._settle()
            if not self._flight.empty:
                self._step()

    def _handed_over(self) -> Iterator[Batch | None]:
        """What was handed over; waits for it where nothing is in flight."""
        if not self._riding:
            yield self._batches.get()
        while True:
            try:
                yield self._batches.get_nowait()
            except queue.Empty:
                return

    def _board(self, batch: Batch) -> None:
        riding = _Riding(batch, time.perf_counter_ns())
        for index, images in enumerate(batch.parts):
            ran = self._attempt(images, self._executor.run_all) if batch.every_stage else None
            if isinstance(ran, DefendError):
                riding.outcomes[index] = ran
            elif batch.is_wanted(index):
                riding.parts[index] = _Part(self._flight.number, len(images))
                self._executor.join(self._flight, images)
            else:
                riding.outcomes[index] = None
        riding.input_ns = time.perf_counter_ns() - riding.started_ns
        self._riding.append(riding)

    def _step(self) -> None:
        began, self._runs = time.perf_counter_ns(), []
        try:
            landed = self._executor.step(self._flight)
        except Exception as error:
            self._fail(error)
            return
        computed = time.perf_counter_ns()
        for riding in self._riding:
            riding.compute_ns += (computed - began) * riding.share(landed.ran, self._runs)
            self._land(riding, landed)
        self._settle()

    def _land(self, riding: _Riding, landed: Landed) -> None:
        """Take in what a wave finished of a batch; the last parts of it are answered together with its report."""
        began, complete = time.perf_counter_ns(), []
        for index, part in riding.parts.items():
            here = (landed.number >= part.first) & (landed.number < part.first + part.rows)
            if not here.any():
                continue
            part.numbers.append(landed.number[here])
            part.verdicts.append(landed.verdicts.rows(np.flatnonzero(here)))
            if part.complete:
                riding.outcomes[index] = part.outcome()
                complete.append(index)
        riding.output_ns += time.perf_counter_ns() - began
        if not riding.done:
            for index in complete:
                self._tell(riding.batch.on_part, index, riding.outcomes[index], riding.runs_of(index))

    def _settle(self) -> None:
        """Tell of batches that are done; a flight without any begins anew."""
        for riding in self._riding:
            if riding.done:
                self._tell(self._done, riding.batch.on_done, riding.result())
        self._riding = [riding for riding in self._riding if not riding.done]
        if not self._riding:
            self._flight = Flight()

    def _fail(self, error: Exception) -> None:
        """Run what is in flight row by row, but for an image that was alone."""
        rows = sum(riding.rows for riding in self._riding)
        failure, self._flight = failure_of(error, rows), Flight()
        for riding in self._riding:
            began = time.perf_counter_ns()
            left = sorted(riding.parts.keys() - riding.outcomes.keys())
            riding.outcomes.update(zip(left, self._after_failure(riding.batch, left, failure, rows), strict=True))
            riding.compute_ns += time.perf_counter_ns() - began
        self._settle()
