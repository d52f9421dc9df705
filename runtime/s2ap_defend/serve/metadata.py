"""What the server tells about itself and its model, in the protocol's shapes."""

from typing import Any

import orjson

from s2ap_defend.serve.served import DATATYPES, INPUT, ServedModel

EXTENSIONS = [
    *("binary_tensor_data", "model_configuration", "model_repository", "parameters", "schedule_policy", "statistics"),
]
PLATFORM = "onnxruntime_onnx"


def describe_server(version: str) -> dict[str, Any]:
    """Body of GET v2."""
    return {"name": "s2ap-defend", "version": version, "extensions": EXTENSIONS}


def describe_model(served: ServedModel) -> dict[str, Any]:
    """Body of GET v2/models/{model}."""
    return {
        "name": served.model,
        "versions": [served.version],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *served.shape]}],
        "outputs": [
            {"name": name, "datatype": DATATYPES[name], "shape": [-1, *_row_shape(name, served)]}
            for name in served.outputs
        ],
    }


def configure_model(served: ServedModel, classes: tuple[str, ...], max_batch_rows: int) -> dict[str, Any]:
    """Body of GET v2/models/{model}/config; as the format wants it, shapes leave out the batch, parameters are text."""
    return {
        "name": served.model,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max_batch_rows,
        "input": [{"name": INPUT, "data_type": "TYPE_FP32", "dims": list(served.shape)}],
        "output": [
            {"name": name, "data_type": f"TYPE_{DATATYPES[name]}", "dims": _row_shape(name, served)}
            for name in served.outputs
        ],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
        "parameters": {"classes": {"string_value": orjson.dumps(classes).decode()}},
    }


def _row_shape(name: str, served: ServedModel) -> list[int]:
    if name == "purified":
        return list(served.shape)
    return [served.classes] if name in {"probabilities", "votes"} else []
