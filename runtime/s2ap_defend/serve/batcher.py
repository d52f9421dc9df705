"""The batcher: many small requests become few large batches on the one thread that owns the device.

Everything but the model itself happens on the event loop, so there are no locks. It is work-conserving: a free device
takes what is queued at once, and what arrives while it is busy forms the next batch. Order is by priority, deadline
and arrival; a second of waiting counts as much as one level of priority, so that nobody starves. Where the device takes
more while it runs, it gets what fits beside that.
"""

import asyncio
import bisect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from s2ap_defend.errors import DefendError
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.serve.device import BatchResult, Classify, Device, Outcome
from s2ap_defend.serve.errors import DeadlineError, QueueFullError, TooLargeError, UnavailableError
from s2ap_defend.serve.stepping import SteppingDevice
from s2ap_defend.types import Float32, Verdicts


@dataclass(eq=False)
class _Piece:
    """Images of one request that run together; at most one batch of them."""

    key: tuple[int, float, int]
    images: Float32
    ticket: "Ticket"
    queued: bool = True
    verdicts: Verdicts | None = None
    answered: bool = False


@dataclass(eq=False)
class Ticket:
    """A request that was taken in; `future` gets its verdicts, or the error."""

    future: asyncio.Future[Verdicts]
    arrived_ns: int
    pieces: list[_Piece] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True)
class BatchReport:
    """A batch that ran: its result, and how long each of its requests, or parts of one, had waited."""

    result: BatchResult
    queue_ns: tuple[int, ...]


class Batcher:
    """Collects requests and runs them on one device.

    Args:
        classify: The model: checked images [N, C, H, W] to N verdicts, or an executor that goes wave by wave. Called by
            one thread only.
        max_batch_rows: Images that run at a time. A larger request is split and its verdicts are joined again.
        max_queue_rows: Images that may wait; more are refused.
        max_queue_bytes: Bytes that they may have.
        ageing_s: Seconds of waiting that weigh as much as one level of priority.
        on_batch: Called on the event loop after every batch.
    """

    def __init__(
        self,
        classify: Classify | StagedExecutor,
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        max_queue_bytes: int,
        ageing_s: float = 1.0,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self._classify = classify
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._max_queue_bytes = max_queue_bytes
        self._ageing_s = ageing_s
        self._on_batch = on_batch
        self._device: Device | None = None
        self._queue: list[_Piece] = []  # sorted by key; short, because its rows are bounded
        self._running: list[_Piece] = []
        self._sequence = 0
        self._wake_up: asyncio.Handle | None = None
        self.queued_rows = 0
        self.queued_bytes = 0

    @property
    def pending_rows(self) -> int:
        """Images that wait or run."""
        return self.queued_rows + sum(len(piece.images) for piece in self._running)

    @property
    def pending_requests(self) -> int:
        """Requests that wait or run."""
        return len({id(piece.ticket) for piece in [*self._queue, *self._running]})

    def start(self) -> None:
        """Start the device's thread; call it on the event loop that will make the requests."""
        loop, model = asyncio.get_running_loop(), self._classify
        self._device = SteppingDevice(model, loop) if isinstance(model, StagedExecutor) else Device(model, loop)

    async def warm_up(self, images: Float32) -> None:
        """Run the model once outside the queue, so that the first request does not pay for it.

        Raises:
            EngineError: If the model fails.
        """
        done: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        self._started_device().run([images], lambda _: True, lambda *_: None, done.set_result)
        outcome = (await done).outcomes[0]
        if isinstance(outcome, DefendError):
            raise outcome

    def enqueue(self, images: Float32, *, priority: int = 0, deadline_s: float = math.inf) -> Ticket:
        """Queue checked images; the caller awaits the ticket's future and then releases the ticket, whatever happens.

        Args:
            images: [N, C, H, W], N > 0.
            priority: Lower runs first.
            deadline_s: Time of the event loop's clock at which the answer is no longer wanted.

        Raises:
            TooLargeError: If they could never fit into the queue.
            QueueFullError: If they do not fit now.
            UnavailableError: If the batcher is not running.
        """
        device = self._started_device()
        self._admit(len(images), images.nbytes)
        loop = asyncio.get_running_loop()
        now = loop.time()
        ticket = Ticket(loop.create_future(), time.perf_counter_ns())
        level = priority + int(now / self._ageing_s)
        for first in range(0, len(images), self._max_batch_rows):
            self._sequence += 1
            part = images[first : first + self._max_batch_rows]
            piece = _Piece((level, deadline_s, self._sequence), part, ticket)
            ticket.pieces.append(piece)
            bisect.insort(self._queue, piece, key=_key)
        self.queued_rows += len(images)
        self.queued_bytes += images.nbytes
        if deadline_s < math.inf:
            ticket.timer = loop.call_at(deadline_s, self._expire, ticket)
        if (device.takes_more or not self._running) and self._wake_up is None:
            self._wake_up = loop.call_soon(self._dispatch)  # requests of the same tick join the batch
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Forget a ticket: parts that still wait leave the queue and give back their budget now."""
        if ticket.timer is not None:
            ticket.timer.cancel()
        self._drop_queued(ticket)
        if not ticket.future.cancel() and not ticket.future.cancelled():
            ticket.future.exception()  # seen, even if nobody waits for it any more

    async def submit(self, images: Float32, *, priority: int = 0, deadline_s: float = math.inf) -> Verdicts:
        """Queue images and wait for their verdicts; see `enqueue`.

        Raises:
            DeadlineError: If the deadline passed first.
            EngineError: If the model fails on these images.
        """
        ticket = self.enqueue(images, priority=priority, deadline_s=deadline_s)
        try:
            return await ticket.future
        finally:
            self.release(ticket)

    def abort(self, error: DefendError) -> None:
        """Fail everything that waits or runs."""
        for piece in [*self._queue, *self._running]:
            _fail(piece.ticket, error)
        self._take(slice(None))

    async def close(self, timeout_s: float) -> bool:
        """Fail what waits and stop the device's thread after its batch; whether it stopped in time."""
        self.abort(UnavailableError("the server is stopping"))
        device, self._device = self._device, None
        return device is None or await device.close(timeout_s)

    def _started_device(self) -> Device:
        if self._device is None:
            raise UnavailableError("the server is not running")
        return self._device

    def _admit(self, rows: int, size_bytes: int) -> None:
        if rows > self._max_queue_rows or size_bytes > self._max_queue_bytes:
            raise TooLargeError(
                f"the request has {rows} images of {size_bytes} bytes, the queue holds {self._max_queue_rows} images "
                f"and {self._max_queue_bytes} bytes; send fewer at once"
            )
        if self.queued_rows + rows > self._max_queue_rows or self.queued_bytes + size_bytes > self._max_queue_bytes:
            raise QueueFullError(f"{self.queued_rows} images wait already; try again later")

    def _take(self, index: slice) -> list[_Piece]:
        taken = self._queue[index]
        del self._queue[index]
        for piece in taken:
            piece.queued = False
            self.queued_rows -= len(piece.images)
            self.queued_bytes -= piece.images.nbytes
        return taken

    def _drop_queued(self, ticket: Ticket) -> None:
        for piece in ticket.pieces:
            if piece.queued:
                index = bisect.bisect_left(self._queue, piece.key, key=_key)
                self._take(slice(index, index + 1))

    def _expire(self, ticket: Ticket) -> None:
        _fail(ticket, DeadlineError("the deadline that the request's timeout set has passed"))
        self._drop_queued(ticket)

    def _dispatch(self) -> None:
        self._wake_up = None
        if not self._queue or self._device is None or (self._running and not self._device.takes_more):
            return
        rows, count = sum(len(piece.images) for piece in self._running), 0
        for piece in self._queue:
            rows += len(piece.images)
            if rows > self._max_batch_rows:
                break
            count += 1
        if not count:
            return
        pieces = self._take(slice(count))
        self._running += pieces
        self._device.run(
            [piece.images for piece in pieces],
            lambda index: not pieces[index].ticket.future.done(),
            lambda index, outcome: self._leave([pieces[index]], [outcome]),
            lambda result: self._finish(pieces, result),
        )

    def _leave(self, pieces: list[_Piece], outcomes: Sequence[Outcome]) -> None:
        """Answer pieces that are done; those that were before stay as they are."""
        gone = set(map(id, pieces))
        self._running = [piece for piece in self._running if id(piece) not in gone]
        self._dispatch()  # the device first
        for piece, outcome in zip(pieces, outcomes, strict=True):
            if piece.answered:
                continue
            piece.answered = True
            if isinstance(outcome, Verdicts):
                piece.verdicts = outcome
                _join(piece.ticket)
            elif outcome is not None:
                _fail(piece.ticket, outcome)
                self._drop_queued(piece.ticket)

    def _finish(self, pieces: list[_Piece], result: BatchResult) -> None:
        self._leave(pieces, result.outcomes)
        if self._on_batch is not None:
            waited = tuple(result.started_ns - piece.ticket.arrived_ns for piece in pieces)
            self._on_batch(BatchReport(result, waited))


def _key(piece: _Piece) -> tuple[int, float, int]:
    return piece.key


def _join(ticket: Ticket) -> None:
    parts = [piece.verdicts for piece in ticket.pieces if piece.verdicts is not None]
    if len(parts) == len(ticket.pieces) and not ticket.future.done():
        ticket.future.set_result(Verdicts.concatenate(parts))


def _fail(ticket: Ticket, error: DefendError) -> None:
    if not ticket.future.done():
        ticket.future.set_exception(error)
