"""Stages of a few nodes, and numbers to compute them with."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


def stage(nodes, constants, outputs=("y",), shape=("batch", 2, 4, 4)):
    graph = helper.make_graph(
        nodes,
        "stage",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


IMAGE = RANDOM.uniform(0.1, 0.9, (3, 2, 4, 4)).astype(np.float32)
