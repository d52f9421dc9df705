"""Which requests a batcher takes in: those that find room and are expected to be answered in time."""

import math
from collections.abc import Sequence

from s2ap_defend.serve.errors import DeadlineError, QueueFullError, TooLargeError
from s2ap_defend.serve.pace import Pace
from s2ap_defend.serve.tickets import Piece, Ticket
from s2ap_defend.serve.waiting import Queue, Total

__all__ = ["HASTE", "Admission"]

HASTE = 1.1  # a request is run if this many times the expected time is left
CAUTION = 2.0  # and taken in if so many times the expected wait is left as well


class Admission:
    """Refuses what a queue has no room for, or no time.

    Args:
        queue: The queue.
        pace: How long batches take.
        total: Bytes that wait in all queues which share the limit.
        max_queue_rows: Images that may wait; more are refused.
        max_queue_bytes: Bytes that all may have.
    """

    def __init__(
        self,
        queue: Queue,
        pace: Pace,
        total: Total,
        *,
        max_queue_rows: int,
        max_queue_bytes: int,
    ) -> None:
        self._queue, self._pace, self._total = queue, pace, total
        self._max_queue_rows = max_queue_rows
        self._max_queue_bytes = max_queue_bytes

    def check_room(self, rows: int, size_bytes: int, running: Sequence[Piece]) -> None:
        """Check that images find room while these run.

        Raises:
            TooLargeError: If they never would.
            QueueFullError: If they do not now.
        """
        if rows > self._max_queue_rows or size_bytes > self._max_queue_bytes:
            raise TooLargeError(
                f"the request has {rows} images of {size_bytes} bytes, the queue holds {self._max_queue_rows} images "
                f"and {self._max_queue_bytes} bytes; send fewer at once"
            )
        too_many = self._queue.rows + rows > self._max_queue_rows
        if too_many or self._total.size_bytes + size_bytes > self._max_queue_bytes:
            pending_rows = self._queue.rows + sum(len(piece.images) for piece in running)
            raise QueueFullError(
                f"{self._queue.rows} images wait already; try again later", self._pace.total_s(pending_rows)
            )

    def check_in_time(self, ticket: Ticket, now_s: float, running: int, running_s: float, *, joins: bool) -> None:
        """Check that a request with a deadline is expected to be in time, with some caution.

        Args:
            ticket: The request.
            now_s: By the clock of the event loop.
            running: Images that run.
            running_s: Since when, in seconds.
            joins: Whether others may join them.

        Raises:
            DeadlineError: If it would not be even if nothing else ran.
            QueueFullError: If it would not be now.
        """
        left_s = ticket.deadline_s - now_s
        rows = ticket.waiting
        alone_s = self._pace.total_s(rows)
        if alone_s > left_s:
            raise DeadlineError(f"its answer takes {alone_s:.3g} s, its timeout leaves {max(left_s, 0.0):.3g} s")
        before = self._queue.rows_before(ticket, now_s)
        if joins and running + before + rows <= self._queue.max_batch_rows:
            return
        wait_s = max(0.0, self._pace.batch_s(running) - running_s) if running else 0.0
        expected_s = wait_s + self._pace.total_s(math.ceil(before) + rows)
        if HASTE * alone_s + CAUTION * (expected_s - alone_s) > left_s:
            raise QueueFullError(
                f"{self._queue.rows} images wait already, an answer is expected in {expected_s:.3g} s and the "
                f"request's timeout leaves {left_s:.3g} s; try again later",
                expected_s,
            )
