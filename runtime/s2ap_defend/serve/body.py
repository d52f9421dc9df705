"""Request bodies: read within limits, and inflated within the same limits."""

import asyncio
import zlib
from collections.abc import MutableMapping
from typing import Any

from starlette.types import Receive

from s2ap_defend.serve.errors import BodyTimeoutError, ProtocolError, TooLargeError

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class ClientGoneError(Exception):
    """The client closed the connection; there is nobody to answer."""


async def read_body(receive: Receive, content_length: int | None, *, limit_bytes: int, timeout_s: float) -> bytes:
    """Read a whole body; one that announces more than the limit is refused before its first byte is read.

    Raises:
        TooLargeError: If it is larger than `limit_bytes`.
        BodyTimeoutError: If it takes longer than `timeout_s`.
        ClientGoneError: If the client disconnects.
    """
    if content_length is not None and content_length > limit_bytes:
        raise TooLargeError(f"the body has {content_length} bytes, this server takes {limit_bytes}; send fewer images")
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(receive, limit_bytes)
    except TimeoutError as error:
        raise BodyTimeoutError(f"the body did not arrive within {timeout_s:g} s") from error


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


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await _next(receive)
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise TooLargeError(f"the body has more than {limit_bytes} bytes, which is what this server takes")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _next(receive: Receive) -> MutableMapping[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message
