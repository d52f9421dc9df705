"""Large JSON requests: one array of numbers and little else, read piece by piece.

A JSON parser makes an object of every value and lets no other thread run meanwhile: 11 million empty lists, 32 kB when
compressed, freeze the server for seconds and take gigabytes. So the array is cut out of the request as text, compared
with the shape before anything is made of it, and read in pieces of a few milliseconds, between which the event loop
answers others.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from s2ap_defend.serve.errors import ProtocolError, TooLargeError
from s2ap_defend.types import Float32, Float64

__all__ = ["LARGE_BYTES", "NUMBER_BYTES", "JsonNumbers", "read_large"]

LARGE_BYTES = 64 * 1024  # what is smaller is read at once; so much a large request may have around its numbers
NUMBER_BYTES = 64  # a number as long as they get, with the indentation of a line of its own
PIECE_BYTES = 256 * 1024

_KEY = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[)')  # in valid JSON only a key looks like this
_ARRAY = re.compile(rb"[\[\]0-9eE+\-., \t\r\n]*")
_NESTED = re.compile(rb"\[[ \t\r\n]*\[")
_SPACES = b" \t\r\n"
_NUMBER = b"0123456789eE+-."
_AS_ZERO = bytes.maketrans(_NUMBER, b"0" * len(_NUMBER))
_AS_SPACE = bytes.maketrans(b"[]", b"  ")
_NOWHERE = (b"0[", b"]0", b"][", b"[]", b"[,", b",]", b",,")


@dataclass(frozen=True)
class JsonNumbers:
    """An array of numbers as JSON text, in which nothing is checked yet but its characters."""

    text: bytes

    def read(self, shape: tuple[int, ...]) -> Float32:
        """Numbers of a flat list, or of lists nested as `shape`; too large ones become infinite.

        Raises:
            ProtocolError: If the text is another number of numbers, is nested in another way, or is no JSON.
        """
        text, total = self.text, math.prod(shape)
        nested = _NESTED.match(text) is not None
        brackets = sum(math.prod(shape[:i]) for i in range(len(shape))) if nested else 1
        if len(text) < 2 * brackets + 2 * total - 1:
            raise ProtocolError(f"data of image holds fewer numbers than its shape {_show(shape)} has")
        structure = _structure(shape if nested else (total,))
        values = np.empty(total, dtype=np.float32)
        done = filled = 0
        for piece in _pieces(text):
            found = piece.translate(None, _NUMBER + _SPACES)
            if found != structure[done : done + len(found)]:
                raise ProtocolError(
                    f"data of image must be a flat list of {total} numbers, or lists nested as its shape {_show(shape)}"
                )
            done += len(found)
            read = _read(piece)
            with np.errstate(over="ignore"):
                values[filled : filled + len(read)] = read
            filled += len(read)
        if done != len(structure):
            raise ProtocolError(f"data of image holds fewer numbers than its shape {_show(shape)} has")
        return values.reshape(shape)


def read_large(body: memoryview) -> Any:  # noqa: ANN401
    """Parse a large request; `data` of its input becomes JsonNumbers.

    Raises:
        ProtocolError: If it is no JSON.
        TooLargeError: If it holds much more than one array of numbers.
    """
    text = bytes(body)
    key = _KEY.search(text, 0, LARGE_BYTES)
    start = stop = 0
    if key is not None:
        start = key.end()
        reached = _end_of_array(text, start)
        stop = max(text.rfind(b"]", start, reached) + 1, start)
        if reached < len(text) and text[reached] not in b'"}':
            raise ProtocolError("data of image must hold numbers only")
    rest = len(text) - (stop - start)
    if rest > LARGE_BYTES:
        raise TooLargeError(f"the JSON has {rest} bytes around the numbers of data, this server takes {LARGE_BYTES}")
    request = orjson.loads(text[:start] + b"null" + text[stop:])
    try:
        tensor = request["inputs"][0]
        if tensor["data"] is None:
            tensor["data"] = JsonNumbers(text[start:stop])
    except (LookupError, TypeError):
        pass  # what is wrong with it is said where it is decoded
    return request


def _end_of_array(text: bytes, start: int) -> int:
    """Where the first character comes that is in no array of numbers."""
    while (match := _ARRAY.match(text, start, start + PIECE_BYTES)) is not None and match.end() == start + PIECE_BYTES:
        start = match.end()
    return start if match is None else match.end()


def _pieces(text: bytes) -> Iterator[bytes]:
    """The text in pieces that begin with a comma, but for the first."""
    start = 0
    while start < len(text):
        stop = text.find(b",", start + PIECE_BYTES, start + 2 * PIECE_BYTES)
        if stop < 0:
            stop = len(text)
            if stop - start > 2 * PIECE_BYTES:
                raise ProtocolError("data of image is not valid JSON: a number in it does not end")
        yield text[start:stop]
        start = stop


def _read(piece: bytes) -> Float64:
    around = piece.translate(_AS_ZERO, _SPACES)
    if any(pair in around for pair in _NOWHERE) or around.endswith(b","):
        raise ProtocolError("data of image is not valid JSON: a number, a bracket or a comma is where none may be")
    try:
        return np.array(orjson.loads(b"[" + piece.removeprefix(b",").translate(_AS_SPACE) + b"]"), dtype=np.float64)
    except ValueError as error:
        raise ProtocolError(f"data of image is not valid JSON: {error}") from error


def _structure(shape: tuple[int, ...]) -> bytes:
    """Brackets and commas of lists nested as `shape`."""
    inner = b""
    for size in reversed(shape):
        inner = b"[" + b",".join([inner] * size) + b"]"
    return inner


def _show(shape: tuple[int, ...]) -> str:
    return str(list(shape))[:100]
