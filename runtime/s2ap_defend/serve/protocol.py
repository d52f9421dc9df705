"""Open Inference Protocol v2 with the binary tensor extension: bytes to arrays and back, pure functions.

A request is JSON, or JSON followed by raw little-endian tensors (the header Inference-Header-Content-Length gives the
length of the JSON), or, with that header 0, one raw image. The protocol: github.com/kserve/open-inference-protocol and
Triton's extension_binary_data. Whatever the bytes are, decoding raises nothing but ProtocolError, or TooLargeError.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from s2ap_defend.serve.errors import ProtocolError
from s2ap_defend.serve.json_numbers import LARGE_BYTES, read_large
from s2ap_defend.serve.served import DATATYPES, DEFAULT_PRIORITY, INPUT, InferRequest, ServedModel
from s2ap_defend.serve.tensors import INPUT_DATATYPES, LITTLE_ENDIAN, encode_tensor, from_bytes, from_json, show
from s2ap_defend.types import Float32, Verdicts

LOWEST_PRIORITY = 10


def decode_header_length(value: str | None) -> int | None:
    """Value of the header Inference-Header-Content-Length; None when the body is JSON alone.

    Raises:
        ProtocolError: If it is no number.
    """
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise ProtocolError(f"the header Inference-Header-Content-Length is {value[:40]!r}, expected a number of bytes")
    return int(value)


def decode_request(body: bytes, header_length: int | None, served: ServedModel) -> InferRequest:
    """Decode the body of an infer request.

    Raises:
        ProtocolError: With the first thing that is wrong, in one sentence.
    """
    if header_length == 0:
        image = from_bytes(memoryview(body), (1, *served.shape), "the raw body")
        return InferRequest(images=image, outputs=served.in_binary)
    head, tail = memoryview(body), memoryview(b"")
    if header_length is not None:
        if header_length > len(body):
            raise ProtocolError(
                f"the header Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes"
            )
        head, tail = head[:header_length], head[header_length:]
    return decode_fields(_object(_parse_json(head), "the request"), tail, served)


def decode_fields(request: Mapping[str, Any], tail: memoryview, served: ServedModel) -> InferRequest:
    """Check a request whose members are those of the protocol's JSON; `tail` is the binary tensor after them.

    The data of an input may be an array as well as a list.

    Raises:
        ProtocolError: With the first thing that is wrong, in one sentence.
    """
    parameters = _object(request.get("parameters", {}), "parameters")
    identity = request.get("id")
    if not (identity is None or isinstance(identity, str)):
        raise ProtocolError("id must be a string")
    timeout_s, priority = decode_scheduling(parameters)
    return InferRequest(
        images=_decode_image(request.get("inputs"), tail, served),
        outputs=_decode_outputs(request.get("outputs"), parameters, served),
        id=identity,
        timeout_s=timeout_s,
        priority=priority,
    )


def decode_scheduling(parameters: Mapping[str, object]) -> tuple[float | None, int]:
    """Timeout in seconds, None for none, and priority, 1 (first) to 10 (last), from `timeout` and `priority`.

    Raises:
        ProtocolError: If one of them is no whole number.
    """
    timeout_us = _whole_number(parameters.get("timeout", 0), "parameter timeout", "microseconds")
    priority = _whole_number(parameters.get("priority", 0), "parameter priority", "1 for the highest")
    return timeout_us / 1e6 if timeout_us else None, min(priority or DEFAULT_PRIORITY, LOWEST_PRIORITY)


def encode_response(request: InferRequest, verdicts: Verdicts, served: ServedModel) -> tuple[bytes, int | None]:
    """Encode an answer: (body, length of its JSON when binary tensors follow, else None)."""
    if request.id is None and all([binary for _, binary in request.outputs]):  # noqa: C419 - so few that a list is faster
        arrays = [getattr(verdicts, name) for name, _ in request.outputs]
        head = _head_of_tensors(served.model, served.version, request.outputs, tuple([array.shape for array in arrays]))
        encoded = [encode_tensor(array, name) for array, (name, _) in zip(arrays, request.outputs, strict=True)]
        return b"".join([head, *encoded]), len(head)
    answer = _named(served.model, served.version)
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = outputs = []
    tensors: list[bytes] = []
    for name, binary in request.outputs:
        array = np.ascontiguousarray(getattr(verdicts, name))
        if binary:
            outputs.append(_tensor(name, array.shape))
            tensors.append(encode_tensor(array, name))
        else:
            outputs.append({**_output(name, array.shape), "data": array.reshape(-1)})
    head = _dumped(answer)
    return (b"".join([head, *tensors]), len(head)) if tensors else (head, None)


@lru_cache(maxsize=256)
def _head_of_tensors(
    model: str, version: str, outputs: tuple[tuple[str, bool], ...], shapes: tuple[tuple[int, ...], ...]
) -> bytes:
    """The JSON of an answer without an id whose outputs, of these shapes, are all binary: always the same."""
    tensors = [_tensor(name, shape) for (name, _), shape in zip(outputs, shapes, strict=True)]
    return _dumped({**_named(model, version), "outputs": tensors})


def _named(model: str, version: str) -> dict[str, Any]:
    return {"model_name": model, "model_version": version}


def _output(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": DATATYPES[name], "shape": shape}


def _tensor(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    size = LITTLE_ENDIAN[DATATYPES[name]].itemsize * math.prod(shape)
    return {**_output(name, shape), "parameters": {"binary_data_size": size}}


def _dumped(answer: dict[str, Any]) -> bytes:
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _parse_json(data: memoryview) -> Any:  # noqa: ANN401
    try:
        return orjson.loads(data) if len(data) <= LARGE_BYTES else read_large(data)
    except ValueError as error:
        raise ProtocolError(f"the request is not valid JSON: {error}") from error


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} must be a JSON object")
    return value


def _list_of_objects(value: object, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ProtocolError(f"{what} must be a list")
    return [_object(item, f"each of the {what}") for item in value]


def _whole_number(value: object, what: str, unit: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ProtocolError(f"{what} must be a whole number, 0 or more ({unit})")
    return value


def _decode_image(inputs: object, tail: memoryview, served: ServedModel) -> Float32:
    tensors = _list_of_objects(inputs if inputs is not None else [], "inputs")
    names = [tensor.get("name") for tensor in tensors]
    if names != [INPUT]:
        raise ProtocolError(f"the inputs are {show(names)}, expected exactly one called {INPUT!r}")
    tensor = tensors[0]
    shape = _check_shape(tensor.get("shape"), served)
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in INPUT_DATATYPES:
        raise ProtocolError(f"{INPUT} has datatype {show(datatype)}, expected one of {_listed(list(INPUT_DATATYPES))}")
    parameters = _object(tensor.get("parameters", {}), f"parameters of {INPUT}")
    if "shared_memory_region" in parameters:
        raise ProtocolError("shared memory is not supported; send the tensor in the body")
    if "binary_data_size" not in parameters:
        if tail:
            raise ProtocolError(f"{len(tail)} bytes follow the JSON, but no input has a binary_data_size")
        if "data" not in tensor:
            raise ProtocolError(f"{INPUT} has neither data nor a binary_data_size")
        return from_json(tensor["data"], shape, datatype)
    if "data" in tensor:
        raise ProtocolError(f"{INPUT} has both data and a binary_data_size")
    size = _whole_number(parameters["binary_data_size"], "binary_data_size", "bytes")
    if size != len(tail):
        raise ProtocolError(
            f"binary_data_size is {size}, but {len(tail)} bytes follow the JSON, "
            "whose length the header Inference-Header-Content-Length gives"
        )
    return from_bytes(tail, shape, INPUT, datatype)


def _check_shape(shape: object, served: ServedModel) -> tuple[int, ...]:
    expected = f"[N, {', '.join(map(str, served.shape))}]"
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise ProtocolError(f"the shape of {INPUT} must be a list of whole numbers, {expected}")
    if len(shape) != 4 or tuple(shape[1:]) != served.shape:
        raise ProtocolError(f"{INPUT} has shape {show(shape)}, the model takes {expected}")
    if shape[0] < 1:
        raise ProtocolError(f"{INPUT} has shape {show(shape)}, which is an empty batch; send at least one image")
    return tuple(shape)


def _decode_outputs(outputs: object, parameters: dict[str, Any], served: ServedModel) -> tuple[tuple[str, bool], ...]:
    default = _flag(parameters, "binary_data_output", False)
    if not outputs and isinstance(outputs, list | None):
        return tuple((name, default) for name in served.outputs)
    wanted: dict[str, bool] = {}
    for output in _list_of_objects(outputs, "outputs"):
        name = output.get("name")
        options = _object(output.get("parameters", {}), "parameters of an output")
        if not isinstance(name, str) or name not in DATATYPES:
            raise ProtocolError(f"there is no output {show(name)}; choose from {_listed(served.outputs)}")
        if name not in served.outputs:
            raise ProtocolError(
                f"output {name!r} is evidence, which this server hides because it guides attackers; "
                "start it with --expose-evidence to see it, or use a key that has the right evidence",
                status=403,
            )
        if name in wanted:
            raise ProtocolError(f"output {name!r} is asked for twice")
        if "classification" in options or "shared_memory_region" in options:
            raise ProtocolError("the classification and shared memory extensions are not supported")
        wanted[name] = _flag(options, "binary_data", default)
    return tuple(wanted.items())


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ProtocolError(f"parameter {name} must be true or false")
    return value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
