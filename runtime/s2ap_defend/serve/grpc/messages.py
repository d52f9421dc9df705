"""Messages of inference.GRPCInferenceService to requests and back; what HTTP checks is checked by the same code."""

from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from s2ap_defend.serve.errors import ProtocolError
from s2ap_defend.serve.protocol import decode_fields
from s2ap_defend.serve.served import DATATYPES, InferRequest, ServedModel
from s2ap_defend.serve.tensors import encode_tensor
from s2ap_defend.types import Verdicts

CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}


def decode_message(message: pb.ModelInferRequest, served: ServedModel) -> InferRequest:
    """Decode a ModelInferRequest.

    Raises:
        ProtocolError: With the first thing that is wrong, in one sentence.
    """
    raw = message.raw_input_contents
    if len(raw) > 1 or len(raw) > len(message.inputs):
        raise ProtocolError(
            f"raw_input_contents has {len(raw)} tensors for {len(message.inputs)} inputs, expected one for each"
        )
    inputs = [_input(tensor, raw[0] if raw else None) for tensor in message.inputs[:2]]  # two are too many already
    fields = {
        "id": message.id or None,
        "parameters": _parameters(message.parameters),
        "inputs": inputs,
        "outputs": [{"name": output.name, "parameters": _parameters(output.parameters)} for output in message.outputs],
    }
    return decode_fields(fields, memoryview(raw[0] if raw else b""), served)


def encode_message(request: InferRequest, verdicts: Verdicts, served: ServedModel) -> pb.ModelInferResponse:
    """Encode an answer; its tensors are raw, in the order of its outputs."""
    answer = pb.ModelInferResponse(model_name=served.model, model_version=served.version, id=request.id or "")
    for name, _ in request.outputs:
        array = np.ascontiguousarray(getattr(verdicts, name))
        answer.outputs.add(name=name, datatype=DATATYPES[name], shape=array.shape)
        answer.raw_output_contents.append(encode_tensor(array, name))
    return answer


def _input(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> dict[str, Any]:
    """A tensor as the protocol's JSON would have it, its numbers as an array."""
    parameters = _parameters(tensor.parameters)
    parameters.pop("binary_data_size", None)  # of HTTP
    found: dict[str, Any] = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "datatype": tensor.datatype,
        "parameters": parameters,
    }
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if raw is not None:
        if filled:
            raise ProtocolError(f"the input has both raw_input_contents and {filled[0]}; send one of them")
        parameters["binary_data_size"] = len(raw)
        return found
    wanted = CONTENTS.get(tensor.datatype)
    if wanted is None:  # the datatype is wrong, or has no numbers: said where datatypes are checked
        return {**found, "data": []}
    if filled != [wanted]:
        what = ", ".join(filled) or "neither contents nor raw_input_contents"
        raise ProtocolError(f"the input has {what}, but {tensor.datatype} is sent as {wanted} or raw_input_contents")
    dtype = np.float32 if tensor.datatype == "FP32" else np.int64
    return {**found, "data": np.array(getattr(tensor.contents, wanted), dtype=dtype)}


def _parameters(parameters: pb.ModelInferRequest.ParametersEntry) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        found[name] = None if kind is None else getattr(parameter, kind)
    return found
