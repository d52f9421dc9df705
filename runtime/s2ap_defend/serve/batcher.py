"""The batcher: many small requests become few large batches on the one thread that owns the device.

Everything but the model itself happens on the event loop, so there are no locks. It is work-conserving: a free device
takes what is queued at once, and what arrives while it is busy forms the next batch. Order is by priority, deadline
and arrival; a second of waiting counts as much as one level of priority, so that nobody starves. A large request gives
some of its images at a time and queues up again for the rest, so that small ones wait for a batch and not for it. What
is not expected to be in time is refused when it comes, or left out when its turn comes: the device works on answers
that somebody still wants. Where the device takes more while it runs, it gets what still fits.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from s2ap_defend.errors import DefendError
from s2ap_defend.serve.device import BatchReport, BatchResult, Device, OnBroken, Outcome, Run
from s2ap_defend.serve.errors import DeadlineError, QueueFullError, TooLargeError, UnavailableError
from s2ap_defend.serve.pace import Pace
from s2ap_defend.serve.stepping import Asked, start_device
from s2ap_defend.serve.tickets import Piece, Ticket
from s2ap_defend.serve.waiting import Queue
from s2ap_defend.types import Float32, Verdicts

HASTE = 1.1  # a request is run if this many times the expected time is left
CAUTION = 2.0  # and taken in if so many times the expected wait is left as well


class Batcher:
    """Collects requests and runs them on one device.

    Args:
        classify: The model, which takes checked images. Called by one thread only.
        max_batch_rows: Images that run at a time. A larger request is split and its verdicts are joined again.
        max_queue_rows: Images that may wait; more are refused.
        max_queue_bytes: Bytes that they may have, those of other batchers included that share the limit.
        queued_elsewhere: Bytes that wait in these.
        ageing_s: Seconds of waiting that weigh as much as one level of priority.
        on_batch: Called on the event loop after every batch.
        on_broken: Called there when the model is broken, once it was warmed up; see `Device`.
    """

    def __init__(
        self,
        classify: Asked,
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        max_queue_bytes: int,
        ageing_s: float = 1.0,
        queued_elsewhere: Callable[[], int] = lambda: 0,
        on_batch: Callable[[BatchReport], None] | None = None,
        on_broken: OnBroken | None = None,
    ) -> None:
        self._classify = classify
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._max_queue_bytes = max_queue_bytes
        self._queued_elsewhere = queued_elsewhere
        self._on_batch = on_batch
        self._on_broken = on_broken
        self._device: Device | None = None
        self._pace = Pace(max_batch_rows)
        self._queue = Queue(max_batch_rows, ageing_s)
        self._running: list[Piece] = []
        self._running_since = 0.0
        self._wake_up: asyncio.Handle | None = None

    @property
    def queued_rows(self) -> int:
        """Images that wait."""
        return self._queue.rows

    @property
    def queued_bytes(self) -> int:
        """Their bytes."""
        return self._queue.size_bytes

    @property
    def running_rows(self) -> int:
        """Images that run."""
        return sum(len(piece.images) for piece in self._running)

    @property
    def pending_rows(self) -> int:
        """Images that wait or run."""
        return self.queued_rows + self.running_rows

    @property
    def pending_requests(self) -> int:
        """Requests that wait or run."""
        return len({id(ticket) for ticket in [*self._queue, *(piece.ticket for piece in self._running)]})

    def start(self) -> None:
        """Start the device's thread; call it on the event loop that will make the requests."""
        self._device = start_device(self._classify, asyncio.get_running_loop(), self._on_broken)

    async def warm_up(self, images: Float32) -> None:
        """Run the model twice outside the queue: the first request does not pay for it, and the pace is known.

        The first time every stage runs, on the thread of the device: CUDA graphs are those of a thread. The first
        images are those that a model which fails is asked about again.

        Raises:
            EngineError: If the model fails.
        """
        loop = asyncio.get_running_loop()
        for every_stage in (True, False):
            began = loop.time()
            await self.probe(images, every_stage=every_stage)
        self._pace.observe(len(images), loop.time() - began)
        device = self._started_device()
        device.known = images if device.known is None else device.known

    async def probe(self, images: Float32, *, every_stage: bool = False) -> None:
        """Run the model once, behind what it has begun and before what waits; nothing is counted.

        Args:
            images: [N, C, H, W], N > 0.
            every_stage: Whether stages run, too, that these images do not ask.

        Raises:
            EngineError: If the model fails.
        """
        done: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        self._started_device().run(
            [images],
            lambda _: True,
            lambda *_: None,
            lambda result: _settle(done, result),
            every_stage=every_stage,
        )
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
            QueueFullError: If they do not fit now, or are not expected to be answered in time.
            DeadlineError: If they would not be in time even if nothing else ran.
            UnavailableError: If the batcher is not running.
        """
        device = self._started_device()
        self._admit(len(images), images.nbytes)
        loop = asyncio.get_running_loop()
        ticket = Ticket(loop.create_future(), images, priority, deadline_s, time.perf_counter_ns())
        if deadline_s < math.inf:
            self._expect_in_time(ticket, device, loop.time())
            ticket.timer = loop.call_at(deadline_s, self._expire, ticket)
        self._queue.add(ticket, loop.time())
        if (device.takes_more or not self._running) and self._wake_up is None:
            self._wake_up = loop.call_soon(self._dispatch)  # requests of the same tick join the batch
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Forget a ticket: what of it still waits leaves the queue and gives back its budget now."""
        if ticket.timer is not None:
            ticket.timer.cancel()
        self._queue.drop(ticket)
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
        for ticket in [*self._queue, *(piece.ticket for piece in self._running)]:
            ticket.fail(error)
            self._queue.drop(ticket)

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
        queued_bytes = self.queued_bytes + self._queued_elsewhere()
        if self.queued_rows + rows > self._max_queue_rows or queued_bytes + size_bytes > self._max_queue_bytes:
            raise QueueFullError(
                f"{self.queued_rows} images wait already; try again later", self._pace.total_s(self.pending_rows)
            )

    def _expect_in_time(self, ticket: Ticket, device: Device, now_s: float) -> None:
        """Refuse a request that is not expected to be in time, with some caution."""
        left_s = ticket.deadline_s - now_s
        rows, running = ticket.waiting, self.running_rows
        alone_s = self._pace.total_s(rows)
        if alone_s > left_s:
            raise DeadlineError(f"its answer takes {alone_s:.3g} s, its timeout leaves {max(left_s, 0.0):.3g} s")
        before = self._queue.rows_before(ticket, now_s)
        if device.takes_more and running + before + rows <= self._max_batch_rows:
            return
        wait_s = max(0.0, self._pace.batch_s(running) - (now_s - self._running_since)) if running else 0.0
        expected_s = wait_s + self._pace.total_s(math.ceil(before) + rows)
        if HASTE * alone_s + CAUTION * (expected_s - alone_s) > left_s:
            raise QueueFullError(
                f"{self.queued_rows} images wait already, an answer is expected in {expected_s:.3g} s and the "
                f"request's timeout leaves {left_s:.3g} s; try again later",
                expected_s,
            )

    def _expire(self, ticket: Ticket, reason: str = "has passed") -> None:
        ticket.fail(DeadlineError(f"the deadline that the request's timeout set {reason}"))
        self._queue.drop(ticket)

    def _dispatch(self) -> None:
        self._wake_up = None
        if not self._queue or self._device is None or (self._running and not self._device.takes_more):
            return
        pieces = self._next_pieces()
        if not pieces:
            return
        now = asyncio.get_running_loop().time()
        if not self._running:
            self._running_since = now
        self._running += pieces
        together, began_ns = self.running_rows, time.perf_counter_ns()
        for piece in pieces:
            piece.began_ns = began_ns
        self._device.run(
            [piece.images for piece in pieces],
            lambda index: not pieces[index].ticket.future.done(),
            lambda index, outcome, runs: self._leave([pieces[index]], [outcome], [runs]),
            lambda result: self._finish(pieces, result, now, together),
        )

    def _next_pieces(self) -> list[Piece]:
        """Take what runs next out of the queue, turn by turn; what would not be in time is answered so.

        A batch is made smaller for the sake of the first one's deadline, but not below half of what it could be: many
        small batches in a row would soon have nobody in time.
        """
        now, rows = asyncio.get_running_loop().time(), self.running_rows
        limit = min(self._max_batch_rows, rows + self.queued_rows)
        fewest = max(rows + 1, (limit + 1) // 2)
        pieces: list[Piece] = []
        while self._queue and rows < limit:
            ticket, free = self._queue.first, limit - rows
            count = self._queue.turn(ticket, len(self._queue))
            if count > free:
                if free < self._queue.least_turn:
                    break
                count = free
            if ticket.deadline_s < math.inf:
                left_s = (ticket.deadline_s - now) / HASTE - self._pace.total_s(ticket.waiting - count)
                if left_s < self._pace.batch_s(limit):
                    if pieces or limit == fewest or left_s < self._pace.batch_s(fewest):
                        self._expire(ticket, "would pass before its answer")
                        continue
                    limit = fewest
            pieces.append(self._queue.take(ticket, count, now))
            rows += count
        return pieces

    def _leave(self, pieces: list[Piece], outcomes: Sequence[Outcome], runs: Sequence[list[Run]]) -> None:
        """Answer pieces that are done; those that were before stay as they are."""
        gone = set(map(id, pieces))
        self._running = [piece for piece in self._running if id(piece) not in gone]
        self._dispatch()  # the device first
        ended_ns = time.perf_counter_ns()
        for piece, outcome, ran_in in zip(pieces, outcomes, runs, strict=True):
            if piece.answered:
                continue
            piece.answered, piece.ended_ns, piece.runs = True, ended_ns, ran_in
            if isinstance(outcome, Verdicts):
                piece.ticket.settle(piece, outcome)
            elif outcome is not None:
                piece.ticket.fail(outcome)
                self._queue.drop(piece.ticket)

    def _finish(self, pieces: list[Piece], result: BatchResult, began_s: float, together: int) -> None:
        self._pace.observe(together, asyncio.get_running_loop().time() - began_s)
        self._leave(pieces, result.outcomes, result.runs)
        if self._on_batch is not None:
            waited = tuple(result.started_ns - piece.ticket.arrived_ns for piece in pieces)
            self._on_batch(BatchReport(result, waited))


def _settle(done: asyncio.Future[BatchResult], result: BatchResult) -> None:
    """Nobody waits any more where a probe was cancelled."""
    if not done.done():
        done.set_result(result)
