"""The queue of the batcher: who is next, and how much of a request at a time."""

import bisect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from s2ap_defend.serve.tickets import Key, Piece, Ticket

__all__ = ["Queue", "Total"]

SHARE = 4  # a request gives at least so large a part of a batch when its turn comes, or what it has


@dataclass(slots=True)
class Total:
    """Bytes that wait in several queues."""

    size_bytes: int = 0


class Queue:
    """Tickets by priority, deadline and time of queueing; a second of waiting weighs like a level of priority.

    Args:
        max_batch_rows: Images that run at a time.
        ageing_s: Seconds of waiting that weigh as much as one level of priority.
        total: Where its bytes count, too.

    Attributes:
        max_batch_rows: Images that run at a time.
        rows: Images that wait.
        size_bytes: Their bytes.
        least_turn: Images that a request gives at least at a time, where it has as many.
    """

    def __init__(self, max_batch_rows: int, ageing_s: float, total: Total) -> None:
        self.max_batch_rows = max_batch_rows
        self._ageing_s = ageing_s
        self._total = total
        self._tickets: list[Ticket] = []  # sorted by key; short, because its rows are bounded
        self._sequence = itertools.count()
        self.rows = 0
        self.size_bytes = 0
        self.least_turn = max(1, max_batch_rows // SHARE)

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        """Them in order."""
        return iter(self._tickets)

    @property
    def first(self) -> Ticket:
        """Whose turn it is."""
        return self._tickets[0]

    def add(self, ticket: Ticket, now_s: float) -> None:
        """Queue a ticket up."""
        self._insert(ticket, now_s)
        self._count(ticket.waiting, ticket.waiting_bytes)

    def drop(self, ticket: Ticket) -> None:
        """Take out a ticket, if it waits: what of it has not run is not wanted any more."""
        if ticket.queued:
            self._remove(ticket)
            self._count(-ticket.waiting, -ticket.waiting_bytes)

    def take(self, ticket: Ticket, rows: int, now_s: float) -> Piece:
        """Take the next images of a ticket; for the rest it queues up again, behind those that wait already."""
        self._remove(ticket)
        piece = ticket.cut(rows)
        self._count(-rows, -piece.images.nbytes)
        if ticket.waiting:
            self._insert(ticket, now_s)
        return piece

    def turn(self, ticket: Ticket, queued: int) -> int:
        """Images that a ticket gives when its turn comes among so many."""
        return min(ticket.waiting, max(self.least_turn, self.max_batch_rows // queued))

    def rows_before(self, ticket: Ticket, now_s: float) -> float:
        """About how many images of others would run before the last ones of a ticket if it queued up now.

        In no more time for a long queue than for a short one: requests are taken to be alike.
        """
        ahead = bisect.bisect(self._tickets, self._place(ticket, now_s), key=_key)
        if not ahead:
            return 0.0
        turn = max(self.least_turn, self.max_batch_rows // (ahead + 1))
        turns = math.ceil(ticket.waiting / turn)
        return ahead * min(self.rows / len(self._tickets), turns * turn)

    def _count(self, rows: int, size_bytes: int) -> None:
        self.rows += rows
        self.size_bytes += size_bytes
        self._total.size_bytes += size_bytes

    def _insert(self, ticket: Ticket, now_s: float) -> None:
        ticket.key = self._place(ticket, now_s)
        ticket.queued = True
        bisect.insort(self._tickets, ticket, key=_key)

    def _remove(self, ticket: Ticket) -> None:
        del self._tickets[bisect.bisect_left(self._tickets, ticket.key, key=_key)]
        ticket.queued = False

    def _place(self, ticket: Ticket, now_s: float) -> Key:
        return (ticket.priority + int(now_s / self._ageing_s), ticket.deadline_s, next(self._sequence))


def _key(ticket: Ticket) -> Key:
    return ticket.key
