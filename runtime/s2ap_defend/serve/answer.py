"""One request and its answer on a connection: uvicorn's, but that an answer of known length is written at once."""

from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

__all__ = ["Answer", "last_answer"]

LEAVE = frozenset({b"connection", b"transfer-encoding"})  # headers that uvicorn understands


class Answer(RequestResponseCycle):
    """Head and body leave together, which saves a system call and wakes the client once."""

    _head: bytes | None = None  # of an answer whose body comes next

    async def send(self, message: Any) -> None:  # noqa: ANN401 - uvicorn's
        """Send a part of the answer."""
        if self._head is None:
            if message["type"] != "http.response.start" or not self._hold(message):
                await super().send(message)
            return
        head, self._head = self._head, None
        body = message.get("body", b"")
        if self.disconnected or message.get("more_body", False) or len(body) != self.expected_content_length:
            self.transport.write(head)
            await super().send(message)
            return
        self.transport.write(head + body)
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _hold(self, message: Any) -> bool:  # noqa: ANN401 - uvicorn's
        """Hold back a head until its body comes, if that is all there is to say; whether it is."""
        if self.response_started or self.disconnected or self.flow.write_paused or self.scope["method"] == "HEAD":
            return False
        headers = self.default_headers + list(message["headers"])
        named = dict(headers)
        if b"content-length" not in named or not LEAVE.isdisjoint(named):
            return False
        if not self.keep_alive:
            headers.append((b"connection", b"close"))
        head = _head(message["status"], headers)
        if not len(headers) + 2 == head.count(b"\n") == head.count(b"\r") or b"\0" in head:
            return False  # what is no header uvicorn refuses
        self.response_started, self.waiting_for_100_continue = True, False
        self.chunked_encoding, self.expected_content_length = False, int(named[b"content-length"])
        self._head = head
        return True


def last_answer(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
    """A whole answer in JSON that ends its connection."""
    length = b"%d" % len(body)
    own = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    return _head(status, [*headers, *own]) + body


def _head(status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return STATUS_LINE[status] + b"\r\n".join([*(b": ".join(header) for header in headers), b"", b""])
