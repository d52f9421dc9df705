"""Requests that the batcher took in, and the parts of them that run."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from s2ap_defend.errors import DefendError
from s2ap_defend.serve.device import Run
from s2ap_defend.types import Float32, Verdicts

__all__ = ["Key", "Piece", "Ticket"]

Key = tuple[int, float, int]


@dataclass(eq=False, slots=True)
class Piece:
    """Images of one request that were handed over together.

    Attributes:
        ticket: Of the request.
        images: [n, C, H, W].
        verdicts: Of these, once they are known.
        answered: Whether they are done, or failed.
        began_ns: When they were handed over, by time.perf_counter_ns.
        ended_ns: When they were done; 0 before.
        runs: What they ran in.
    """

    ticket: "Ticket"
    images: Float32
    verdicts: Verdicts | None = None
    answered: bool = False
    began_ns: int = 0
    ended_ns: int = 0
    runs: Sequence[Run] = ()


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that was taken in; `future` gets its verdicts, or the error.

    Attributes:
        images: [N, C, H, W].
        waiting: How many of its images have not left the queue.
        priority: Lower runs first.
        deadline_s: Time of the event loop's clock at which the answer is no longer wanted.
        arrived_ns: By time.perf_counter_ns.
        key: Its place in the queue.
        queued: Whether it waits there.
        pieces: These, in order.
        timer: Fires at the deadline.
    """

    future: asyncio.Future[Verdicts]
    images: Float32
    waiting: int
    priority: int
    deadline_s: float
    arrived_ns: int
    key: Key = (0, 0.0, 0)
    queued: bool = False
    pieces: list[Piece] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    @property
    def waiting_bytes(self) -> int:
        """Bytes of those that have not left the queue."""
        return self.images.nbytes // len(self.images) * self.waiting

    def cut(self, rows: int) -> Piece:
        """The next images."""
        taken = len(self.images) - self.waiting
        piece = Piece(self, self.images if rows == len(self.images) else self.images[taken : taken + rows])
        self.waiting -= rows
        self.pieces.append(piece)
        return piece

    def settle(self, piece: Piece, verdicts: Verdicts) -> None:
        """Take in the verdicts of a piece; the last one answers the request."""
        piece.verdicts = verdicts
        if self.waiting or self.future.done():
            return
        parts = [piece.verdicts for piece in self.pieces if piece.verdicts is not None]
        if len(parts) == len(self.pieces):
            self.future.set_result(Verdicts.concatenate(parts) if len(parts) > 1 else parts[0])

    def fail(self, error: DefendError) -> None:
        """Answer the request with an error, unless it has an answer."""
        if not self.future.done():
            self.future.set_exception(error)
