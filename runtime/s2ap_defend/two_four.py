"""2:4 sparsity in an ONNX graph, group by group: what TensorRT's sparse kernels skip."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from s2ap_defend.external_data import tensor_array

__all__ = ["is_two_four", "two_four_stages"]

_GROUP, _KEPT = 4, 2


def is_two_four(stage: ModelProto) -> bool:
    """Whether every convolution with inputs in whole groups of four has at most two numbers in each, and there is one.

    Groups are four consecutive input channels of one output, at one place of the kernel (Mishra et al. 2021, arXiv
    2104.08378). One dense layer more, such as the last, is allowed: TensorRT takes sparse kernels layer by layer.
    """
    return _are_two_four(
        _weights(stage.graph.node, {tensor.name: tensor for tensor in stage.graph.initializer}, Path())
    )


def two_four_stages(graphs: Sequence[GraphProto], folder: Path = Path()) -> tuple[str, ...]:
    """The scopes of a defended model whose weights are 2:4, sorted.

    Args:
        graphs: The graph and those of its branches.
        folder: Where its external data lies.
    """
    tensors = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    nodes: dict[str, list[NodeProto]] = {}
    for node in (node for graph in graphs for node in graph.node):
        nodes.setdefault(node.name.partition("/")[0], []).append(node)
    return tuple(sorted(scope for scope, own in nodes.items() if _are_two_four(_weights(own, tensors, folder))))


def _are_two_four(weights: Iterable[NDArray[np.generic]]) -> bool:
    dense = sparse = False
    for weight in weights:
        if _has_pattern(weight):
            sparse = True
        elif dense:
            return False
        else:
            dense = True
    return sparse


def _weights(
    nodes: Iterable[NodeProto], tensors: Mapping[str, TensorProto], folder: Path
) -> Iterator[NDArray[np.generic]]:
    """Weights [O, I, ...] of convolutions whose inputs come in whole groups; those of 8 bits as integers."""
    ordered = list(nodes)
    made = {node.output[0]: node for node in ordered if node.op_type == "DequantizeLinear"}
    for node in ordered:
        if node.op_type != "Conv":
            continue
        name = made[node.input[1]].input[0] if node.input[1] in made else node.input[1]
        if name in tensors and len(tensors[name].dims) > 1 and tensors[name].dims[1] % _GROUP == 0:
            yield tensor_array(tensors[name], folder)


def _has_pattern(weight: NDArray[np.generic]) -> bool:
    groups = np.moveaxis(weight, 1, -1).reshape(-1, _GROUP)
    return bool((np.count_nonzero(groups, axis=1) <= _KEPT).all())
