"""A linear classifier of 1x4x4 images, as a stage: what an attack can reach is known."""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

WEIGHT = np.random.default_rng(1).normal(size=(16, 2)).astype(np.float32)


def linear_stage() -> ModelProto:
    """`image` -> `log_probabilities`."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probabilities"], axis=1),
    ]
    declared = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", ["batch", 1, 4, 4]), ("log_probabilities", ["batch", 2]))
    ]
    graph = helper.make_graph(nodes, "linear", declared[:1], declared[1:], [numpy_helper.from_array(WEIGHT, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
