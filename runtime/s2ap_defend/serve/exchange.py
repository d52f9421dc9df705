"""What a request is called in answers, logs and traces: its id, and the place in a trace that its caller gives it."""

import os
import re
from collections.abc import Iterable
from contextvars import ContextVar

__all__ = ["EXCHANGE", "NAMING", "REQUEST_ID", "Exchange", "current_id", "named"]

REQUEST_ID = "x-request-id"
NAMING = frozenset({b"x-request-id", b"traceparent"})  # headers of which `named` makes anything
SANE = re.compile(rb"[A-Za-z0-9][\w.:/+=@-]{0,127}")
TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
VERSION_0_BYTES = 55
ID_BYTES, IDS_AT_ONCE = 16, 64


_unused_ids: list[str] = []  # several at a time, because a call of the system takes longer than all else here


def _random_id() -> str:
    if not _unused_ids:
        drawn = os.urandom(IDS_AT_ONCE * ID_BYTES).hex()
        _unused_ids.extend(drawn[i : i + 2 * ID_BYTES] for i in range(0, len(drawn), 2 * ID_BYTES))
    return _unused_ids.pop()


class Exchange:
    """One request and its answer.

    Attributes:
        id: The client's own name for it, or a random one.
        trace_id: Of the trace that it is a part of, None for none.
        traceparent: What the client says of that trace, W3C Trace Context; None if nothing, or nothing valid.
        tracestate: What it says besides; empty without a `traceparent`.
        key: Name of the key that it was let in with, None without.
    """

    __slots__ = ("id", "key", "trace_id", "traceparent", "tracestate")

    def __init__(self, name: str | None = None, traceparent: bytes | None = None, tracestate: str = "") -> None:
        self.id = name or _random_id()
        self.key: str | None = None
        found = traceparent and TRACEPARENT.fullmatch(traceparent)
        if not traceparent or not found or (traceparent[:2] == b"00" and len(traceparent) != VERSION_0_BYTES):
            self.trace_id = self.traceparent = None
            self.tracestate = ""
        else:
            self.trace_id = found[1].decode()
            self.traceparent = traceparent.decode("latin-1")
            self.tracestate = tracestate


EXCHANGE: ContextVar[Exchange] = ContextVar("exchange")
"""What the task that asks answers; set before anything of the request is looked at."""


def named(headers: Iterable[tuple[bytes, bytes]]) -> Exchange:
    """The exchange of a request with these headers, names in lower case.

    `X-Request-Id` is taken if it is sent once and has 1 to 128 letters, digits and `_.:/+=@-`, and begins with a letter
    or digit: it goes into logs and headers as it is.
    """
    names: list[bytes] = []
    parents: list[bytes] = []
    states: list[str] = []
    for name, value in headers:
        if name == b"x-request-id":
            names.append(value)
        elif name == b"traceparent":
            parents.append(value)
        elif name == b"tracestate":
            states.append(value.decode("latin-1"))
    sane = len(names) == 1 and SANE.fullmatch(names[0])
    return Exchange(names[0].decode() if sane else None, parents[0] if len(parents) == 1 else None, ",".join(states))


def current_id() -> str | None:
    """The id of the request that the current task answers, None outside of one."""
    exchange = EXCHANGE.get(None)
    return None if exchange is None else exchange.id
