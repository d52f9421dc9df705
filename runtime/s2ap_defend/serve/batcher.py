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
from s2ap_defend.serve.admission import Admission
from s2ap_defend.serve.device import BatchReport, BatchResult, Device, OnBroken, Outcome, Run
from s2ap_defend.serve.errors import DeadlineError, UnavailableError
from s2ap_defend.serve.pace import Pace
from s2ap_defend.serve.quick import LATE_S, Quickness
from s2ap_defend.serve.stepping import Asked, start_device
from s2ap_defend.serve.tickets import Piece, Ticket
from s2ap_defend.serve.turns import next_pieces
from s2ap_defend.serve.waiting import Queue, Total
from s2ap_defend.types import Float32, Verdicts


class Batcher:
    """Collects requests and runs them on one device.

    Args:
        classify: The model, which takes checked images. Called by one thread only.
        max_batch_rows: Images that run at a time. A larger request is split and its verdicts are joined again.
        max_queue_rows: Images that may wait; more are refused.
        max_queue_bytes: Bytes that they may have.
        queued: Bytes that wait for all who share the limit; None: nobody else does.
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
        queued: Total | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
        on_broken: OnBroken | None = None,
    ) -> None:
        self._classify = classify
        self._on_batch = on_batch
        self._on_broken = on_broken
        self._loop: asyncio.AbstractEventLoop
        self._device: Device | None = None
        self._pace = Pace(max_batch_rows)
        self._quickness = Quickness()
        queued = queued or Total()
        self._queue = Queue(max_batch_rows, ageing_s, queued)
        self._admission = Admission(
            self._queue, self._pace, queued, max_queue_rows=max_queue_rows, max_queue_bytes=max_queue_bytes
        )
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
        self._loop = asyncio.get_running_loop()
        self._device = start_device(self._classify, self._loop, self._on_broken)

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

    async def probe(self, images: Float32, *, every_stage: bool = False) -> BatchResult:
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
            lambda result: None if done.done() else done.set_result(result),  # done: it was cancelled
            every_stage=every_stage,
        )
        result = await done
        outcome = result.outcomes[0]
        if isinstance(outcome, DefendError):
            raise outcome
        return result

    async def allow_here(self, images: Float32) -> None:
        """Measure on images [N, C, H, W] of several kinds whether lone ones may be answered on the event loop.

        Raises:
            EngineError: If the model fails.
        """
        for i in range(len(images)):
            took = [await self.probe(images[i : i + 1], every_stage=True) for _ in range(3)]
            if not self._quickness.measure([(one.input_ns + one.compute_ns) / 1e9 for one in took]):
                return

    def enqueue(
        self, images: Float32, *, priority: int = 0, deadline_s: float = math.inf, alone: bool = False
    ) -> Ticket:
        """Queue checked images; the caller awaits the ticket's future and then releases the ticket, whatever happens.

        Args:
            images: [N, C, H, W], N > 0.
            priority: Lower runs first.
            deadline_s: Time of the event loop's clock at which the answer is no longer wanted.
            alone: Whether no other request can come in this tick of the event loop.

        Raises:
            TooLargeError: If they could never fit into the queue.
            QueueFullError: If they do not fit now, or are not expected to be answered in time.
            DeadlineError: If they would not be in time even if nothing else ran.
            UnavailableError: If the batcher is not running.
        """
        device = self._started_device()
        self._admission.check_room(len(images), images.nbytes, self._running)
        loop, now_s = self._loop, self._loop.time()
        ticket = Ticket(loop.create_future(), images, len(images), priority, deadline_s, time.perf_counter_ns())
        if deadline_s < math.inf:
            running_s = now_s - self._running_since
            self._admission.check_in_time(ticket, now_s, self.running_rows, running_s, joins=device.takes_more)
            ticket.timer = loop.call_at(deadline_s, self._expire, ticket)
        if alone and not self._queue.rows and self._may_run_here(device, ticket, now_s):
            self._run_here(device, ticket.cut(1), now_s)
            return ticket
        self._queue.add(ticket, now_s)
        if (device.takes_more or not self._running) and self._wake_up is None:
            if alone:
                self._dispatch()
            else:
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

    def _expire(self, ticket: Ticket, reason: str = "has passed") -> None:
        ticket.fail(DeadlineError(f"the deadline that the request's timeout set {reason}"))
        self._queue.drop(ticket)

    def _dispatch(self) -> None:
        self._wake_up = None
        device = self._device
        if not self._queue.rows or device is None or (self._running and not device.takes_more):
            return
        now = self._loop.time()
        if len(self._queue) == 1 and self._may_run_here(device, self._queue.first, now):
            self._run_here(device, self._queue.take(self._queue.first, 1, now), now)
        elif pieces := next_pieces(self._queue, self._pace, self.running_rows, now, self._expire):
            self._hand_over(device, pieces, now)

    def _hand_over(self, device: Device, pieces: list[Piece], now_s: float) -> None:
        """Let the thread of the device run pieces."""
        if not self._running:
            self._running_since = now_s
        self._running += pieces
        together, began_ns = self.running_rows, time.perf_counter_ns()
        for piece in pieces:
            piece.began_ns = began_ns
        device.run(
            [piece.images for piece in pieces],
            lambda index: not pieces[index].ticket.future.done(),
            lambda index, outcome, runs: self._leave([pieces[index]], [outcome], [runs]),
            lambda result: self._finish(pieces, result, now_s, together),
        )

    def _may_run_here(self, device: Device, ticket: Ticket, now_s: float) -> bool:
        """Whether a request, the only one, has one image of a quick model: another thread would cost most of it."""
        late_s = now_s + LATE_S
        return ticket.waiting == 1 and device.idle and ticket.deadline_s > late_s and self._quickness.allows(now_s)

    def _run_here(self, device: Device, piece: Piece, now_s: float) -> None:
        """Answer an image now; where the model fails, the device finds out whether it is the image."""
        piece.began_ns = time.perf_counter_ns()
        ran = device.run_here(piece.images)
        if ran is None:
            self._hand_over(device, [piece], now_s)
            return
        verdicts, result = ran
        took_s = result.compute_ns / 1e9
        self._quickness.observe(took_s, now_s)
        self._pace.observe(1, took_s)
        piece.answered, piece.ended_ns, piece.runs = True, result.started_ns + result.compute_ns, result.runs[0]
        piece.ticket.settle(piece, verdicts)
        if self._on_batch is not None:
            self._on_batch(BatchReport(result, (result.started_ns - piece.ticket.arrived_ns,)))

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
        self._pace.observe(together, self._loop.time() - began_s)
        self._leave(pieces, result.outcomes, result.runs)
        if self._on_batch is not None:
            waited = tuple(result.started_ns - piece.ticket.arrived_ns for piece in pieces)
            self._on_batch(BatchReport(result, waited))
