"""Request bodies: read within limits, and inflated within the same limits."""

import asyncio
import zlib
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive

from s2ap_defend.serve.errors import BodyTimeoutError, ProtocolError, QueueFullError, TooLargeError
from s2ap_defend.serve.shares import Hold

SLOW_START_S = 5.0  # a body may stall so long in all, in addition to what its bytes need at the least rate
REQUESTS = "s2ap_defend.requests"  # in a scope: all that this process answers over HTTP
WHOLE_BODY = "s2ap_defend.whole_body"  # in the scope of a request whose whole body has arrived
WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class ClientGoneError(Exception):
    """The client closed the connection; there is nobody to answer."""


@dataclass(frozen=True)
class BodyLimits:
    """What a body may cost.

    Attributes:
        size_bytes: Its size.
        timeout_s: Seconds it may take.
        rate_bytes_s: Bytes a second that must come after five seconds.
    """

    size_bytes: int
    timeout_s: float
    rate_bytes_s: int


async def read_body(
    receive: Receive, content_length: int | None, limits: BodyLimits, hold: Hold, *, whole: bool = False
) -> bytes:
    """Read a whole body; one that announces too much is refused before its first byte is read.

    Args:
        receive: Of ASGI.
        content_length: What the client announces, if it does. Nothing is charged for an announcement.
        limits: What it may cost.
        hold: Where the bytes that have arrived are charged.
        whole: Whether all of it is known to have arrived.

    Raises:
        TooLargeError: If it is larger than the limit.
        QueueFullError: If it does not fit into the share of its sender now.
        BodyTimeoutError: If it takes too long, or comes too slowly.
        ClientGoneError: If the client disconnects.
    """
    size = limits.size_bytes
    if content_length is not None and content_length > size:
        raise TooLargeError(f"the body has {content_length} bytes, this server takes {size}; send fewer images")
    if whole:
        return _charged(await _next(receive), limits, hold)
    if not hold.fits(content_length or 1):
        raise QueueFullError(FULL)
    started = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(started + min(limits.timeout_s, SLOW_START_S)) as deadline:
            return await _read(receive, started, limits, hold, deadline)
    except TimeoutError as error:
        late = asyncio.get_running_loop().time() - started >= limits.timeout_s
        reason = f"within {limits.timeout_s:g} s" if late else f"at {limits.rate_bytes_s} bytes a second or faster"
        raise BodyTimeoutError(f"the body did not arrive {reason}") from error


def inflate(body: bytes, encoding: str | None, *, limit_bytes: int) -> bytes:
    """Undo a Content-Encoding; memory stays within `limit_bytes` plus a little, whatever the body claims.

    Raises:
        ProtocolError: If the encoding is unknown (415), or the body is not encoded so or cut off.
        TooLargeError: If the content is larger than `limit_bytes`.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    if name not in WINDOW_BITS:
        raise ProtocolError(f"Content-Encoding {name[:40]!r} is unknown, expected gzip or deflate", status=415)
    stream = zlib.decompressobj(WINDOW_BITS[name])
    try:
        content = stream.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise ProtocolError(f"the body is not {name} data: {error}") from error
    if len(content) > limit_bytes:
        raise TooLargeError(f"the inflated body has more than {limit_bytes} bytes, which is what this server takes")
    if not stream.eof:
        raise ProtocolError(f"the {name} data of the body is cut off")
    if stream.unused_data:
        raise ProtocolError(f"{len(stream.unused_data)} bytes follow the {name} data of the body")
    return content


FULL = "too many bytes are being received already; try again later"


async def _read(receive: Receive, started: float, limits: BodyLimits, hold: Hold, deadline: asyncio.Timeout) -> bytes:
    chunks: list[bytes] = []
    while True:
        message = await _next(receive)
        chunks.append(_charged(message, limits, hold))
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        deadline.reschedule(started + min(limits.timeout_s, SLOW_START_S + hold.amount / limits.rate_bytes_s))


def _charged(message: MutableMapping[str, Any], limits: BodyLimits, hold: Hold) -> bytes:
    chunk: bytes = message.get("body", b"")
    if hold.amount + len(chunk) > limits.size_bytes:
        raise TooLargeError(f"the body has more than {limits.size_bytes} bytes, which is what this server takes")
    if not hold.add(len(chunk)):
        raise QueueFullError(FULL)
    return chunk


async def _next(receive: Receive) -> MutableMapping[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message
