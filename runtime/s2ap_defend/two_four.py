"""2:4 sparsity in an ONNX graph, group by group: what TensorRT's sparse kernels skip."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

__all__ = ["is_two_four"]

_GROUP, _KEPT = 4, 2


def is_two_four(stage: ModelProto) -> bool:
    """Whether every convolution with inputs in whole groups of four has at most two numbers in each, and there is one.

    Groups are four consecutive input channels of one output, at one place of the kernel (Mishra et al. 2021, arXiv
    2104.08378). One dense layer more, such as the last, is allowed: TensorRT takes sparse kernels layer by layer.
    """
    patterns = [_has_pattern(weight) for weight in _weights(stage)]
    return any(patterns) and patterns.count(False) <= 1


def _weights(stage: ModelProto) -> Iterator[NDArray[np.generic]]:
    """Weights [O, I, ...] of convolutions whose inputs come in whole groups; those of 8 bits as integers."""
    tensors = {tensor.name: tensor for tensor in stage.graph.initializer}
    made = {node.output[0]: node for node in stage.graph.node if node.op_type == "DequantizeLinear"}
    for node in stage.graph.node:
        if node.op_type != "Conv":
            continue
        name = made[node.input[1]].input[0] if node.input[1] in made else node.input[1]
        if name in tensors:
            weight = numpy_helper.to_array(tensors[name])
            if weight.shape[1] % _GROUP == 0:
                yield weight


def _has_pattern(weight: NDArray[np.generic]) -> bool:
    groups = np.moveaxis(weight, 1, -1).reshape(-1, _GROUP)
    return bool((np.count_nonzero(groups, axis=1) <= _KEPT).all())
