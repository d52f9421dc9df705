"""What runs next of what waits, turn by turn."""

import math
from collections.abc import Callable

from s2ap_defend.serve.admission import HASTE
from s2ap_defend.serve.pace import Pace
from s2ap_defend.serve.tickets import Piece, Ticket
from s2ap_defend.serve.waiting import Queue

__all__ = ["next_pieces"]


def next_pieces(
    queue: Queue, pace: Pace, running: int, now_s: float, expire: Callable[[Ticket, str], None]
) -> list[Piece]:
    """Take what runs next out of a queue; what would not be in time is left out.

    A batch is made smaller for the sake of the first one's deadline, but not below half of what it could be: many
    small batches in a row would soon have nobody in time.

    Args:
        queue: The queue.
        pace: How long batches take.
        running: Images that run already, and will run with these.
        now_s: By the clock of the event loop.
        expire: Answers a request that would not be in time, and takes it out of the queue.
    """
    rows, limit = running, min(queue.max_batch_rows, running + queue.rows)
    fewest = max(rows + 1, (limit + 1) // 2)
    pieces: list[Piece] = []
    while queue.rows and rows < limit:
        ticket, free = queue.first, limit - rows
        count = queue.turn(ticket, len(queue))
        if count > free:
            if free < queue.least_turn:
                break
            count = free
        if ticket.deadline_s < math.inf:
            left_s = (ticket.deadline_s - now_s) / HASTE - pace.total_s(ticket.waiting - count)
            if left_s < pace.batch_s(limit):
                if pieces or limit == fewest or left_s < pace.batch_s(fewest):
                    expire(ticket, "would pass before its answer")
                    continue
                limit = fewest
        pieces.append(queue.take(ticket, count, now_s))
        rows += count
    return pieces
