"""A classifier that is an ONNX file: its own graph, renamed, between what prepares the pixels and what makes logits."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, TensorProto, helper

from s2ap_defend.model_file import all_graphs
from s2ap_defend.stages import rename_values, value_names
from s2ap_export.graph.builder import BATCH, GraphBuilder
from s2ap_train.models.onnx_network import OnnxNetwork

__all__ = ["onnx_stage"]


def onnx_stage(network: OnnxNetwork, input_shape: tuple[int, int, int], scope: str) -> ModelProto:
    """The classifier as a stage, like `s2ap_export.tracing.trace.trace_classifier`.

    Its operators are those of the file, so an image has the same answer in every batch up to what ONNX Runtime's
    kernels do at other batch sizes.

    Args:
        network: The file and how it is called.
        input_shape: (C, H, W).
        scope: Prefix of all names.
    """
    build = GraphBuilder(scope)
    value = _answered(build, network, _prepared(build, network))
    value = build.op("LogSoftmax", _logits(build, network, value), axis=1)
    images = helper.make_tensor_value_info("image", TensorProto.FLOAT, [BATCH, *input_shape])
    answers = helper.make_tensor_value_info("log_probabilities", TensorProto.FLOAT, [BATCH, network.classes])
    model = build.model([images], [(value, answers)])
    onnx.checker.check_model(model, full_check=True)
    return model


def _prepared(build: GraphBuilder, network: OnnxNetwork) -> str:
    """The image as the graph wants it."""
    value, pixels = "image", network.normalisation
    if pixels.mean is not None:
        value = build.op("Sub", value, build.constant(pixels.shift.numpy()))
    if pixels.std is not None:
        value = build.op("Div", value, build.constant(pixels.scale.numpy()))
    return build.op("Transpose", value, perm=(0, 2, 3, 1)) if network.layout == "NHWC" else value


def _answered(build: GraphBuilder, network: OnnxNetwork, image: str) -> str:
    """The graph of the file, added node by node; the name of its output. Nodes in branches and loops have no names."""
    graph = GraphProto()
    graph.CopyFrom(network.proto.graph)
    inside = {name for inner in all_graphs(graph) for name in value_names(inner)}
    rename_values(graph, {name: f"{build.scope}/graph/{name}" for name in inside} | {graph.input[0].name: image})
    for inner in all_graphs(graph):
        for node in inner.node:
            node.ClearField("name")
            node.ClearField("doc_string")
    for number, node in enumerate(graph.node):
        node.name = f"{build.scope}/graph_{number}"
    build.initializers |= {tensor.name: tensor for tensor in graph.initializer}
    build.nodes += graph.node
    return str(graph.output[0].name)


def _logits(build: GraphBuilder, network: OnnxNetwork, value: str) -> str:
    """What the graph answers as logits, as `Reading` computes them."""
    reading = network.reading
    if reading.log:
        least = build.constant(np.float32(torch.finfo(torch.float32).tiny))
        value = build.op("Log", build.op("Max", value, least))
    if reading.centre:
        mean = build.op("ReduceMean", value, build.constant(np.array([1], dtype=np.int64)), keepdims=1)
        value = build.op("Sub", value, mean)
    return value if reading.divide == 1 else build.op("Div", value, build.constant(np.float32(reading.divide)))
