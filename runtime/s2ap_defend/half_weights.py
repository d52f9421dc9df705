"""Weights rounded to float16 in a stage that computes in float32, and stored in half of the bytes.

A tensor W that float16 holds exactly becomes `W:half`, and a node at the start of its graph casts that to W again, what
engines do once, when they load a file (constant folding). Whoever reads W finds it under its name.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["are_halves", "is_sum", "lengthen", "shorten", "weight_names"]

_LEAST = 512
"""Numbers from which a tensor is stored in halves."""
_HALF = ":half"

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


def shorten(graphs: Iterable[GraphProto]) -> None:
    """Store tensors of float32 in float16 where that holds their numbers exactly, in place.

    Args:
        graphs: A graph and those of all branches inside it, weights in memory.
    """
    for graph in graphs:
        casts: list[NodeProto] = []
        for tensor in graph.initializer:
            if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims, dtype=np.int64) < _LEAST:
                continue
            values = numpy_helper.to_array(tensor)
            with np.errstate(over="ignore"):
                halves = values.astype(np.float16)
            if halves.astype(np.float32).tobytes() == values.tobytes():
                casts.append(_cast(tensor.name))
                tensor.CopyFrom(numpy_helper.from_array(halves, tensor.name + _HALF))
        for cast in reversed(casts):
            graph.node.insert(0, cast)  # branches stay the objects that `graphs` has


def lengthen(graphs: Iterable[GraphProto]) -> None:
    """Undo `shorten`, in place: the graphs are what they were, to the last bit.

    Args:
        graphs: A graph and those of all branches inside it.

    Raises:
        ValueError: If the nodes that cast tensors are not those of `shorten`, or a tensor is of another type.
    """
    for graph in graphs:
        stored = [tensor for tensor in graph.initializer if tensor.name.endswith(_HALF)]
        casts = [_cast(tensor.name.removesuffix(_HALF)) for tensor in stored]
        kinds = {(one.data_type, one.data_location) for one in stored}
        if list(graph.node[: len(casts)]) != casts or kinds - {(TensorProto.FLOAT16, TensorProto.DEFAULT)}:
            raise ValueError(f"the nodes that cast {stored[0].name} are not those of the file format")
        for tensor in stored:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name.removesuffix(_HALF)))
        del graph.node[: len(casts)]


def _cast(name: str) -> NodeProto:
    return helper.make_node("Cast", [name + _HALF], [name], name=f"{name}:single", to=TensorProto.FLOAT)
