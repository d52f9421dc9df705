"""Bodies of multipart/form-data (RFC 7578), which are in memory already: the files in them, without a copy of them."""

import re
from collections.abc import Iterator

from s2ap_defend.serve.errors import ProtocolError, TooLargeError

__all__ = ["form_parts"]

PIECE_BYTES = 256 * 1024  # a search for so much takes a few milliseconds, in which no other thread runs
HEAD_BYTES = 4096  # of one part: names and types
BOUNDARY_BYTES = 70  # RFC 2046
MOST_PARTS = 10_000  # the caller's limit is of those that have a file

_BOUNDARY = re.compile(r';[ \t]*boundary=(?:"([^"]*)"|([^;" \t]*))', re.IGNORECASE)
_DISPOSITION = re.compile(r"^content-disposition:[ \t]*form-data\b(.*)$", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(r';[ \t]*(filename|name)=(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))', re.IGNORECASE)
_ESCAPED = re.compile(r'\\(["\\])')


def form_parts(body: bytes, content_type: str) -> Iterator[tuple[str, int, int]]:
    """The parts of a form, in their order.

    Args:
        body: The whole body.
        content_type: Of the request; it names the boundary between parts.

    Yields:
        Name of the file, or of the field where the part names none, and where its content begins and ends. Fields in
        which no file was chosen (no name, no content) are passed over.

    Raises:
        ProtocolError: If the body is no such form, or is cut off.
        TooLargeError: If it has over 10,000 parts.
    """
    delimiter = b"\r\n--" + _boundary_of(content_type)
    if body.startswith(delimiter[2:]):
        stop = -2
    elif (stop := _find(body, delimiter, 0)) < 0:
        raise ProtocolError("the body has no part of multipart/form-data; is the boundary of its Content-Type right?")
    parts = 0
    while (start := _after_delimiter(body, stop + len(delimiter))) is not None:
        parts += 1
        if parts > MOST_PARTS:
            raise TooLargeError(f"the form has over {MOST_PARTS} parts; send fewer at a time")
        stop = _find(body, delimiter, start)
        if stop < 0:
            raise ProtocolError("the multipart/form-data of the body is cut off")
        end_of_head = body.find(b"\r\n\r\n", start, min(stop, start + HEAD_BYTES))
        if end_of_head < 0:
            raise ProtocolError(f"a part of the form has no header, or one of over {HEAD_BYTES} bytes")
        name, chosen = _name_of(body[start:end_of_head])
        if chosen or end_of_head + 4 < stop:
            yield name, end_of_head + 4, stop


def _boundary_of(content_type: str) -> bytes:
    found = _BOUNDARY.search(content_type)
    boundary = (found[1] or found[2] or "").encode("latin-1") if found else b""
    if not 0 < len(boundary) <= BOUNDARY_BYTES:
        raise ProtocolError(f"the Content-Type names no boundary of 1 to {BOUNDARY_BYTES} bytes between parts")
    return boundary


def _after_delimiter(body: bytes, at: int) -> int | None:
    """Where the part behind a delimiter begins; None behind the last one."""
    if body.startswith(b"--", at):
        return None
    line = body.find(b"\r\n", at, at + HEAD_BYTES)
    if line < 0 or body[at:line].strip(b" \t"):
        raise ProtocolError("the multipart/form-data of the body is cut off, or its boundary is part of a file")
    return line + 2


def _name_of(head: bytes) -> tuple[str, bool]:
    """Name of a part, and whether that is of a file, or of a field that is none."""
    disposition = _DISPOSITION.search(head.decode("utf-8", "replace").replace("\r\n", "\n"))
    if disposition is None:
        raise ProtocolError("a part of the form has no header Content-Disposition: form-data")
    names = {
        kind.lower(): _ESCAPED.sub(r"\1", quoted) or plain for kind, quoted, plain in _NAME.findall(disposition[1])
    }
    return names.get("filename") or names.get("name", ""), names.get("filename") != ""


def _find(body: bytes, what: bytes, start: int) -> int:
    while start < len(body):
        at = body.find(what, start, start + PIECE_BYTES + len(what))
        if at >= 0:
            return at
        start += PIECE_BYTES
    return -1
