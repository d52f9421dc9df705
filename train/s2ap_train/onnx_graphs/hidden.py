"""The hidden features of a classifier stage: what its last layer of weights reads."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from s2ap_defend.errors import ModelFileError

__all__ = ["hidden_stage"]

_WEIGHTED = {"Conv", "Gemm", "MatMul"}


def hidden_stage(stage: ModelProto) -> ModelProto:
    """A stage that ends before its last layer of weights, and gives what that layer reads as `features` [N, ...].

    Args:
        stage: `image` -> `log_probabilities`, as `s2ap_defend.stages.cut_stage` gives it; it stays as it is.

    Raises:
        ModelFileError: If the stage has no layer with weights.
    """
    graph = stage.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    layers = [(i, node) for i, node in enumerate(graph.node) if node.op_type in _WEIGHTED]
    if not layers:
        raise ModelFileError(
            f"stage {graph.name} has no layer with weights ({', '.join(sorted(_WEIGHTED))}) to stop at"
        )
    last, layer = layers[-1]
    read = _data_of(layer, constants)
    cut = ModelProto()
    cut.CopyFrom(stage)
    del cut.graph.node[last:]
    del cut.graph.output[:]
    cut.graph.node.append(helper.make_node("Identity", [read], ["features"], name=f"{graph.name}/features"))
    cut.graph.output.append(helper.make_empty_tensor_value_info("features"))
    return cut


def _data_of(layer: NodeProto, constants: set[str]) -> str:
    """The input of a layer that is no constant."""
    return next((name for name in layer.input if name and name not in constants), layer.input[0])
