"""One HTTP connection: uvicorn's, with limits on how many there are and on what a client may leave undone."""

import asyncio
from collections import deque
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from s2ap_defend.serve.answer import Answer, last_answer
from s2ap_defend.serve.body import REQUESTS, WHOLE_BODY
from s2ap_defend.serve.exchange import REQUEST_ID, Exchange
from s2ap_defend.serve.flow import Flow, unread_bytes
from s2ap_defend.serve.idleness import Idleness
from s2ap_defend.serve.responses import error_body
from s2ap_defend.serve.shares import Limits, peer_of

__all__ = ["MOST_UNANSWERED", "PIECE_BYTES", "Connection"]

GOODBYE_S = 1.0  # for a client to agree to the end of TLS, once it has all that was sent to it
DISCARD_S = 1.0  # a client that still sends must be able to read why it was refused
HEAD_BYTES = 32 * 1024
PIECE_BYTES = 4 * 1024  # are parsed at a time: hundreds of requests at most
MOST_UNANSWERED = 8  # requests of a client that pipelines: more are begun when these are answered
OVERHEAD = 8  # bytes of framing for a byte of body; a chunk of one byte has 5
FIRST_PROBE_S, SLOWEST_PROBE_S = 0.05, 1.0


class Connection(HttpToolsProtocol):
    """uvicorn's connection within limits; what it refuses by itself is answered with {"error"} too.

    Attributes:
        raw: What is under TLS, None without TLS.
    """

    raw: asyncio.Transport | None = None

    def __init__(self, *arguments: Any, limits: Limits, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(*arguments, **options)
        self._limits = limits
        self._peer = ""
        self._admitted = False
        self._discarding = False
        self._impatience: asyncio.TimerHandle | None = None
        self._idleness = Idleness(self.loop, self.timeout_keep_alive, self.timeout_keep_alive_handler)
        self._later = b""  # what has come and waits for answers to what came before it
        self._head_begun = False
        self._head_bytes = 0
        self._framing_bytes = 0
        self._lost = False
        self._unanswered: deque[RequestResponseCycle] = deque()  # oldest first; of a client that pipelines, several

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take in a connection, or turn it away."""
        super().connection_made(transport)
        self.flow: Flow = Flow(transport)
        self._peer = peer_of(self.client)
        self._admitted = self._limits.connections.take(self._peer, 1)
        if self._admitted:
            self._hurry()
        else:
            self._write_error(503, "too many connections are open already; try again later", retry_after=1)
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._calm()
        self._idleness.close()
        self._lost, self._later = True, b""
        if self._admitted:
            self._limits.connections.give_back(self._peer, 1)
            self._admitted = False
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; whoever sends without having sent a whole head is given little time."""
        data, self._later = self._later + data, b""
        for start in range(0, len(data), PIECE_BYTES):
            if self._discarding or self.transport.is_closing():
                return
            if len(self._unanswered) >= MOST_UNANSWERED:
                self._later = data[start:]
                self._calm()
                self.flow.hold()
                return
            self._take(data[start : start + PIECE_BYTES])

    def _take_later(self) -> None:
        self.flow.release()
        self.data_received(b"")

    def _take(self, data: bytes) -> None:
        self._framing_bytes += len(data)
        rest: bytes | None = data
        while rest is not None:
            self._idleness.end()
            rest = self._parse(rest)
        if self._framing_bytes > HEAD_BYTES and not self._discarding:
            self._refuse(431, f"the head of the request has more than {HEAD_BYTES} bytes")
        waiting = not self._idleness.lasts and not self._answering
        if (self._head_begun or waiting) and not self._discarding:
            self._hurry()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer whole requests of a client that has only ended its own side.

        It may as well be gone altogether. The difference shows in what becomes of bytes that are sent to it, so it is
        sent interim answers, which every client of HTTP/1.1 skips, until the answer is there. TLS of the event loop
        ends both sides.
        """
        if self.raw is not None or not self._answering or self.cycle.more_body or self._discarding:
            return False
        self.cycle.keep_alive = False
        self._probe(FIRST_PROBE_S)
        return True

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._head_begun = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES:
            raise ValueError("the parser stops here")
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the request asks for another protocol first."""
        self._head_begun = False
        self._calm()
        if self.parser.should_upgrade():
            return
        before = self.cycle
        super().on_headers_complete()
        self.cycle.__class__ = Answer  # its task begins later; uvicorn lets nobody name the class
        self.scope[REQUESTS] = self.tasks  # type: ignore[literal-required]
        self._unanswered.append(self.cycle)
        if self._limits.draining:
            self.cycle.keep_alive = False
            if before is not None and not before.response_started:
                before.keep_alive = True  # this one comes behind it

    def on_body(self, body: bytes) -> None:
        """Take in a part of a body."""
        self._framing_bytes = max(0, self._framing_bytes - (1 + OVERHEAD) * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._framing_bytes = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()
            self.scope[WHOLE_BODY] = True  # type: ignore[literal-required]

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of a body that nobody reads."""
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self._idleness.begin()
        if self._later and len(self._unanswered) < MOST_UNANSWERED:
            self.loop.call_soon(self._take_later)
        if self.cycle.more_body:
            self._hurry()
        if self.transport.is_closing():
            self._close()

    def shutdown(self) -> None:
        """End when nothing is asked any more: what a client may have sent before it could know is answered."""
        if self._answering:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(self._limits.linger_s, self._end)

    def _end(self) -> None:
        if self._answering or self._later or self._head_begun or self.transport.is_closing():
            return  # it ends with its answer
        if unread_bytes(self.transport):  # of TLS, too; a part of a record, which TLS holds back, does not show
            self.loop.call_later(0.01, self._end)
        else:
            self._close()

    def _close(self) -> None:
        """Close when all is sent; a client that does not agree to the end of TLS is not waited for."""
        self.transport.close()
        if self.raw is not None:
            self.loop.call_later(GOODBYE_S, self._hang_up, self.raw)

    def _hang_up(self, raw: asyncio.Transport) -> None:
        if self._lost:
            return
        if raw.get_write_buffer_size() or self.transport.get_write_buffer_size():
            self.loop.call_later(GOODBYE_S, self._hang_up, raw)
        else:
            self.transport.abort()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _parse(self, data: bytes) -> bytes | None:
        """Parse bytes; where a request ends that asks for another protocol, those behind it, else None."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.parser.get_method() != b"CONNECT":
                return self._without_upgrade() + data[upgrade.args[0] :]
            self._refuse(405, "CONNECT is not allowed")
        except httptools.HttpParserError:
            if self._head_bytes > HEAD_BYTES:
                self._refuse(431, f"the head of the request has more than {HEAD_BYTES} bytes")
            else:
                self._refuse(400, "this is no valid HTTP request")
        return None

    def _without_upgrade(self) -> bytes:
        """The head of the request again, without what asks for another protocol, for a new parser.

        A server may ignore `Upgrade` (RFC 9110, 7.8); the parser stops there and would leave out the body.
        """
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            head += [] if name == b"upgrade" else [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"".join([*head, b"\r\n"])

    def _probe(self, wait_s: float) -> None:
        if self._answering and not self.transport.is_closing():
            if self.scope["http_version"] == "1.1" and not self.cycle.response_started:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.loop.call_later(wait_s, self._probe, min(2 * wait_s, SLOWEST_PROBE_S))

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
            self._close()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer with an error and close; what the client still sends is discarded, so that it can read the answer.

        An earlier request that is being answered gets its answer instead, unless it is the one that went wrong.
        """
        self._calm()
        self._idleness.end()
        self._discarding, self._later = True, b""
        if self._answering and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self._close()
                return
        self._write_error(status, reason)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.release()
        self.loop.call_later(DISCARD_S, self._close)

    def _write_error(self, status: int, reason: str, *, retry_after: int | None = None) -> None:
        """Answer what no application sees."""
        exchange = Exchange()
        if self._limits.access_log is not None:
            self._limits.access_log.http(exchange, self.client and self.client[0], "-", b"-", status, 0.0)
        headers = [(REQUEST_ID.encode(), exchange.id.encode()), *self.server_state.default_headers]
        headers += [(b"retry-after", b"%d" % retry_after)] if retry_after is not None else []
        self.transport.write(last_answer(status, headers, error_body(reason)))
