"""One HTTP connection: uvicorn's, with limits on how many there are and on what a client may leave undone."""

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from s2ap_defend.serve.responses import error_body
from s2ap_defend.serve.shares import Shares, peer_of

__all__ = ["Connection", "Limits"]

DISCARD_S = 1.0  # a client that still sends must be able to read why it was refused


@dataclass
class Limits:
    """What all connections of a server share.

    Attributes:
        connections: How many there may be, and for each peer.
        head_timeout_s: Seconds a client has for the head of a request, from the first byte, or from connecting; and for
            what it still sends of a body that was refused.
    """

    connections: Shares
    head_timeout_s: float


class Connection(HttpToolsProtocol):
    """uvicorn's connection within limits; what it refuses by itself is answered with {"error"} too."""

    def __init__(self, *arguments: Any, limits: Limits, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(*arguments, **options)
        self._limits = limits
        self._peer = ""
        self._admitted = False
        self._discarding = False
        self._impatience: asyncio.TimerHandle | None = None
        self._head_begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take in a connection, or turn it away."""
        super().connection_made(transport)
        self._peer = peer_of(self.client)
        self._admitted = self._limits.connections.take(self._peer, 1)
        if self._admitted:
            self._hurry()
        else:
            self._write_error(503, "too many connections are open already; try again later", retry_after=1)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._calm()
        if self._admitted:
            self._limits.connections.give_back(self._peer, 1)
            self._admitted = False
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; whoever sends without having sent a whole head is given little time."""
        if self._discarding or self.transport.is_closing():
            return
        super().data_received(data)
        if self.timeout_keep_alive_task is None and not self._answering and not self._discarding:
            self._hurry()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._head_begun = True
        self._hurry()

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        self._head_begun = False
        self._calm()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of a body that nobody reads."""
        super().on_response_complete()
        if self.cycle.more_body:
            self._hurry()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's text
        """Refuse what is no HTTP."""
        self._refuse(400, "this is no valid HTTP request")

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _hurry(self) -> None:
        if self._impatience is None:
            self._impatience = self.loop.call_later(self._limits.head_timeout_s, self._lose_patience)

    def _calm(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _lose_patience(self) -> None:
        self._impatience = None
        if self._head_begun:
            self._refuse(408, f"the head of the request did not arrive within {self._limits.head_timeout_s:g} s")
        elif not self._answering:
            self.transport.close()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer with an error and close; what the client still sends is discarded, so that it can read the answer.

        An earlier request that is being answered gets its answer instead, unless it is the one that went wrong.
        """
        self._calm()
        self._unset_keepalive_if_required()
        self._discarding = True
        if self._answering and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        self._write_error(status, reason)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(DISCARD_S, self.transport.close)

    def _write_error(self, status: int, reason: str, *, retry_after: int | None = None) -> None:
        body = error_body(reason)
        head = [STATUS_LINE[status]]
        head += [name + b": " + value + b"\r\n" for name, value in self.server_state.default_headers]
        head += [b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)]
        head += [b"retry-after: %d\r\n" % retry_after] if retry_after is not None else []
        self.transport.write(b"".join([*head, b"\r\n", body]))
