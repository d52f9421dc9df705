"""Tensors of requests and answers: bytes and numbers to arrays, and back."""

import math
import reprlib

import numpy as np

from s2ap_defend.serve.errors import ProtocolError
from s2ap_defend.serve.json_numbers import JsonNumbers
from s2ap_defend.serve.served import DATATYPES, INPUT
from s2ap_defend.types import Float32

__all__ = ["INPUT_DATATYPES", "LITTLE_ENDIAN", "encode_tensor", "from_bytes", "from_json", "show"]

LITTLE_ENDIAN = {
    name: np.dtype(code) for name, code in {"INT64": "<i8", "BOOL": "|b1", "FP32": "<f4", "FP64": "<f8"}.items()
}
INPUT_DATATYPES = {"FP32": "<f4", "FP16": "<f2", "UINT8": "|u1"}
LEVELS = np.float32(255.0)  # of UINT8


def from_bytes(data: memoryview, shape: tuple[int, ...], what: str, datatype: str = "FP32") -> Float32:
    """The raw tensor `what` of a shape as FP32.

    Raises:
        ProtocolError: If it has another size.
    """
    dtype = np.dtype(INPUT_DATATYPES[datatype])
    expected = dtype.itemsize * math.prod(shape)  # Python integers do not overflow
    if len(data) != expected:
        raise ProtocolError(f"{what} has {len(data)} bytes, but {datatype} of shape {show(list(shape))} has {expected}")
    array = np.frombuffer(data, dtype=dtype).reshape(shape).astype(np.float32, copy=False)
    if datatype == "UINT8":
        return array / LEVELS
    return array if array.flags.aligned else array.copy()  # the JSON before it has any length


def from_json(data: object, shape: tuple[int, ...], datatype: str) -> Float32:
    """Numbers of a datatype that JSON can hold, as FP32.

    Raises:
        ProtocolError: If they are of another number or shape, are no numbers, or the datatype is FP16.
    """
    if datatype == "FP16":
        raise ProtocolError("FP16 has no form as numbers; send it as binary data, or the numbers as FP32")
    values = _numbers(data, shape)
    if datatype == "UINT8":
        if not ((values >= 0) & (values <= LEVELS) & (values == np.floor(values))).all():
            raise ProtocolError(f"data of {INPUT} must hold whole numbers from 0 to 255, because it is UINT8")
        values /= LEVELS
    return values


def encode_tensor(array: np.ndarray, name: str) -> bytes:
    """The output called `name` as binary data."""
    dtype = LITTLE_ENDIAN[DATATYPES[name]]
    return array.tobytes() if array.dtype == dtype else array.astype(dtype).tobytes()


def show(value: object) -> str:
    """What a client sent, for a message: bounded in depth and size."""
    return reprlib.repr(value)


def _numbers(data: object, shape: tuple[int, ...]) -> Float32:
    if isinstance(data, JsonNumbers):
        return data.read(shape)
    if not isinstance(data, list | np.ndarray):
        raise ProtocolError(f"data of {INPUT} must be a list of numbers")
    try:
        array = np.array(data)
    except (ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"data of {INPUT} must be a flat list, or lists nested as its shape") from error
    if array.size and array.dtype.kind not in "fiu":
        raise ProtocolError(f"data of {INPUT} must hold numbers only")
    if array.size != math.prod(shape) or (array.ndim > 1 and array.shape != shape):
        found = f"{array.size} numbers" if array.ndim == 1 else f"lists nested as {show(list(array.shape))}"
        raise ProtocolError(f"data of {INPUT} holds {found}, but its shape is {show(list(shape))}")
    with np.errstate(over="ignore"):  # becomes infinite, which is then refused by its value
        return array.astype(np.float32).reshape(shape)
