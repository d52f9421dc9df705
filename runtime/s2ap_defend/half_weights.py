"""Weights rounded to float16 in a stage that computes in float32."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

__all__ = ["are_halves", "is_sum", "weight_names"]

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def weight_names(nodes: Iterable[NodeProto]) -> set[str]:
    """Names of what convolutions and products take as their second factor; a name may be that of a weight or not."""
    return {node.input[1] for node in nodes if node.op_type in _WEIGHTED}


def are_halves(values: NDArray[np.generic]) -> bool:
    """Whether float16 holds every value exactly, or the weights are those of a sum, which are never rounded."""
    return is_sum(values) or bool((values.astype(np.float16).astype(np.float32) == values).all())


def is_sum(values: NDArray[np.generic]) -> bool:
    """Whether these weights of a convolution add up or average channels: all equal, [1, n, 1, 1]."""
    return values.shape == (1, values.size, 1, 1) and bool((values == values.flat[0]).all())
