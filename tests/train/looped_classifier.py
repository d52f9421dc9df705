"""A classifier as an ONNX file with a loop, of which torch has no gradient here: ten classes, grey images of 8x8."""

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

SHAPE, CLASSES = (1, 8, 8), 10
_TURNS = 3


def looped() -> ModelProto:
    """images [N, 1, 8, 8] -> logits [N, 10]: a hidden state that goes through the same layer three times.

    The body of the loop reads a weight from the graph around it.
    """
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(generator.normal(0, 0.3, shape).astype(np.float32), name)

    def value(name: str, kind: int, shape: list[str | int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    state: list[str | int] = ["n", 12]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still_on"], name="body/same"),
            helper.make_node("MatMul", ["hidden", "turn"], ["turned"]),
            helper.make_node("Tanh", ["turned"], ["next"]),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), value("hidden", 1, state)],
        [value("still_on", TensorProto.BOOL, []), value("next", 1, state)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("MatMul", ["flat", "into"], ["first"]),
            helper.make_node("Loop", ["turns", "go", "first"], ["last"], name="around/loop", body=body),
            helper.make_node("MatMul", ["last", "out"], ["y"]),
        ],
        "looped",
        [value("x", 1, ["n", *SHAPE])],
        [value("y", 1, ["n", CLASSES])],
        [
            weight("into", 64, 12),
            weight("turn", 12, 12),
            weight("out", 12, CLASSES),
            numpy_helper.from_array(np.array(_TURNS, np.int64), "turns"),
            numpy_helper.from_array(np.array(True), "go"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def write_looped(path: Path) -> Path:
    """The file."""
    onnx.save(looped(), path)
    return path


def answers(images: np.ndarray) -> np.ndarray:
    """What it answers, in numpy."""
    weights = {one.name: numpy_helper.to_array(one) for one in looped().graph.initializer}
    state = images.reshape(len(images), -1) @ weights["into"]
    for _ in range(_TURNS):
        state = np.tanh(state @ weights["turn"])
    found: np.ndarray = state @ weights["out"]
    return found
