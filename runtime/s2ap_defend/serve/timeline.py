"""What became of a request and when: decode, queue, batch, and the stages that it ran in."""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from s2ap_defend.serve.tickets import Ticket

__all__ = ["Step", "Timeline", "server_timing"]


class Step(NamedTuple):
    """A part of the time of a request.

    Attributes:
        name: decode, queue, batch or stage; a stage is a part of the batch before it.
        began_ns: By time.perf_counter_ns.
        ended_ns: Likewise.
        rows: Images of the request in a batch.
        stages: Which stages of the model, in a stage.
    """

    name: str
    began_ns: int
    ended_ns: int
    rows: int | None = None
    stages: str | None = None


def server_timing(steps: Iterable[Step]) -> str:
    """Steps as a header Server-Timing, in milliseconds; what happened several times is added up."""
    took_ns: dict[str, int] = {}
    for step in steps:
        name = step.stages or step.name
        took_ns[name] = took_ns.get(name, 0) + step.ended_ns - step.began_ns
    return ", ".join(f"{name};dur={ns / 1e6:.3f}" for name, ns in took_ns.items())


class Timeline:
    """The time of one inference request, written as it is answered.

    Attributes:
        arrived_ns: When it arrived, by time.perf_counter_ns.
        epoch_ns: What makes such a time one since 1970; the same for all of a request, whatever clocks do meanwhile.
        decode_ns: When its decoding began and ended; None before.
        ticket: What was queued of it; None before.
    """

    __slots__ = ("arrived_ns", "decode_ns", "epoch_ns", "ticket")

    def __init__(self) -> None:
        self.arrived_ns = time.perf_counter_ns()
        self.epoch_ns = time.time_ns() - self.arrived_ns
        self.decode_ns: tuple[int, int] | None = None
        self.ticket: Ticket | None = None

    def steps(self) -> Iterator[Step]:
        """Its steps until now, in order; what has not ended ends now."""
        if self.decode_ns is not None:
            yield Step("decode", *self.decode_ns)
        if self.ticket is None:
            return
        now, since = time.perf_counter_ns(), self.ticket.arrived_ns
        for piece in self.ticket.pieces:
            yield Step("queue", since, piece.began_ns)
            yield Step("batch", piece.began_ns, piece.ended_ns or now, rows=len(piece.images))
            for run in piece.runs:
                yield Step("stage", run.began_ns, run.ended_ns, stages=run.stages)
            since = piece.began_ns
        if self.ticket.waiting:
            yield Step("queue", since, now)
