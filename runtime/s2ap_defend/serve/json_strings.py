"""JSON with files in base64: long strings are cut out before it is parsed, and read in pieces.

A JSON parser lets no other thread run while it copies and checks what may be 32 MiB, and what looks like a few files
can be millions of empty lists. Without its long strings a request is small, or is refused.
"""

import binascii
import re
from collections.abc import Iterator
from typing import Any

import orjson

from s2ap_defend.errors import InputError
from s2ap_defend.serve.errors import ProtocolError, TooLargeError
from s2ap_defend.serve.json_numbers import LARGE_BYTES

__all__ = ["LongStrings"]

LONG_BYTES = 256
PIECE_BYTES = 256 * 1024  # of base64: a multiple of four

_MARK = "\0"  # begins the string that stands for one that was cut out; no base64 has it
_BACKSLASH = 0x5C
_ESCAPE = re.compile(rb"\\(?!/)")  # "\/" is how some write a slash


class LongStrings:
    """A JSON text, and where its long strings are.

    Args:
        body: The whole body.

    Attributes:
        parsed: The JSON, in which marks stand for long strings.

    Raises:
        ProtocolError: If it is no JSON.
        TooLargeError: If it has over 64 KiB around its long strings.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._places: list[tuple[int, int]] = []
        text = self._cut(body)
        try:
            self.parsed: Any = orjson.loads(text)
        except ValueError as error:
            raise ProtocolError(f"the request is not valid JSON: {error}") from error

    def decode(self, text: str) -> bytes:
        """The bytes that a string of `parsed` means in base64.

        Raises:
            InputError: If it is no base64 of the standard alphabet, padded and on one line.
        """
        if text.startswith(_MARK):
            data = b"".join(self._without_escapes(*self._places[int(text[1:])]))
        else:
            data = text.encode()
        view = memoryview(data)
        try:
            pieces = [
                binascii.a2b_base64(view[at : at + PIECE_BYTES], strict_mode=True)
                for at in range(0, len(view), PIECE_BYTES)
            ]
        except binascii.Error as error:
            raise InputError(f"b64 is no base64 ({error}); send the padded standard form on one line") from error
        if any(len(piece) % 3 for piece in pieces[:-1]):  # padding within the text
            raise InputError("b64 is no base64 (it goes on after its padding)")
        return b"".join(pieces)

    def _without_escapes(self, start: int, stop: int) -> Iterator[bytes]:
        for at in range(start, stop, PIECE_BYTES):
            end = min(at + PIECE_BYTES, stop)
            escape = _ESCAPE.search(self._body, at, end + 1)
            if escape is not None and escape.start() < end:
                raise InputError("b64 is no base64 (it has an escaped character); send it on one line")
            yield self._body[at:end].translate(None, b"\\")

    def _cut(self, body: bytes) -> bytes:
        """The JSON with marks for its long strings."""
        parts: list[bytes] = []
        size = done = at = 0
        while (start := body.find(b'"', at) + 1) > 0 and size + start - done <= LARGE_BYTES:
            stop = body.find(b'"', start)
            if stop - start > LONG_BYTES and body[stop - 1] != _BACKSLASH:
                parts += [body[done:start], b"\\u0000%d" % len(self._places)]
                size += len(parts[-1]) + len(parts[-2])
                self._places.append((start, stop))
                done = stop
            else:
                while 0 < stop <= done + LARGE_BYTES and _is_escaped(body, stop):
                    stop = body.find(b'"', stop + 1)
            at = stop + 1
            if stop < 0:
                break
        size += len(body) - done
        if size > LARGE_BYTES:
            raise TooLargeError(f"the JSON has over {LARGE_BYTES} bytes around the base64 of its images")
        parts.append(body[done:])
        if any(b"\\u0000" in part for part in parts[::2]):
            raise ProtocolError("the request is not valid JSON for this server: a string in it has a NUL character")
        return b"".join(parts)


def _is_escaped(body: bytes, at: int) -> bool:
    """Whether the quote at `at` belongs to the string before it: an odd number of backslashes is before it."""
    before = at
    while body[before - 1] == _BACKSLASH:
        before -= 1
    return (at - before) % 2 == 1
