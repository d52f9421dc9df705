"""Weights of which most are zero, stored as those that are not and the gaps between them.

A tensor W becomes two initialisers of one dimension: `W:values`, and `W:gaps`, unsigned bytes: how many places each
value lies behind the one before it, the first behind the place 0. A zero is stored where a gap would exceed a byte.
Five nodes at the start of its graph make the tensor of them again, of standard operators that engines run once, when
they load a file (constant folding). Whoever reads W finds it under its name.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["compress", "expand"]

_MOST = 255
_WORTH_BYTES, _WORTH_SHARE = 1024, 0.5
_TYPES = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8}
_PARTS = ("gaps", "values", "axis", "size", "shape")


def compress(graphs: Sequence[GraphProto]) -> int:
    """Store weights in this form, in place, where it takes at most half of their bytes and saves 1 KiB or more.

    None is where a name of the graphs could be taken for one of a part.

    Args:
        graphs: A graph and those of all branches inside it, weights in memory.

    Returns:
        How many tensors are stored so.
    """
    if any(tensor.name.endswith(":gaps") for graph in graphs for tensor in graph.initializer):
        return 0
    count = 0
    for graph in graphs:
        nodes: list[NodeProto] = []
        tensors: list[TensorProto] = []
        for tensor in graph.initializer:
            parts = _encoded(tensor) if tensor.data_type in _TYPES else []
            dense = tensor.ByteSize()
            needed = sum(part.ByteSize() for part in parts)
            if parts and needed <= _WORTH_SHARE * dense and needed + _WORTH_BYTES <= dense:
                nodes += _decoding(tensor.name, tensor.data_type)
                tensors += parts
                count += 1
            else:
                tensors.append(deepcopy(tensor))
        if nodes:
            del graph.initializer[:]
            graph.initializer.extend(tensors)
            for node in reversed(nodes):
                graph.node.insert(0, node)  # branches stay the objects that `graphs` has
    return count


def expand(graphs: Iterable[GraphProto], *, most_bytes: int) -> int:
    """Undo `compress`, in place: the graphs are what they were, to the last bit.

    Args:
        graphs: A graph and those of all branches inside it.
        most_bytes: That all tensors may have together; a small file could ask for any number.

    Returns:
        How many tensors were stored so.

    Raises:
        ValueError: If a tensor or the nodes that make it are not those of `compress`, or there would be more bytes.
    """
    count = 0
    for graph in graphs:
        parts = {tensor.name: tensor for tensor in graph.initializer}
        names = [name.removesuffix(":gaps") for name in parts if name.endswith(":gaps")]
        if not names:
            continue
        tensors: list[TensorProto] = []
        nodes: list[NodeProto] = []
        for tensor in graph.initializer:
            name, _, part = tensor.name.rpartition(":")
            if part not in _PARTS or f"{name}:gaps" not in parts:
                tensors.append(deepcopy(tensor))
            elif part == "gaps":
                if missing := [one for one in _PARTS if f"{name}:{one}" not in parts]:
                    raise ValueError(f"{name} is stored as gaps without {missing[0]}")
                own = {one: numpy_helper.to_array(parts[f"{name}:{one}"]) for one in _PARTS}
                dense = _decoded(name, own, most_bytes)
                most_bytes -= dense.nbytes
                tensors.append(numpy_helper.from_array(dense, name))
                nodes += _decoding(name, tensors[-1].data_type)
        found = list(graph.node[: len(nodes)])
        if found != nodes:
            raise ValueError(f"the nodes that make {names[0]} of its gaps are not those of the file format")
        del graph.node[: len(nodes)], graph.initializer[:]
        graph.initializer.extend(tensors)
        count += len(names)
    return count


def _encoded(tensor: TensorProto) -> list[TensorProto]:
    """What is stored instead of a tensor; empty where its zeros are not counted on."""
    array = numpy_helper.to_array(tensor)
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = flat.view(np.dtype(f"u{flat.itemsize}"))  # -0.0 is not 0
    (places,) = np.nonzero(bits)
    if len(places) > _WORTH_SHARE * len(flat):
        return []
    places = places if len(places) else np.zeros(1, dtype=np.int64)
    steps = np.diff(places, prepend=0)
    added = np.maximum(steps - 1, 0) // _MOST
    last = np.cumsum(added + 1) - 1
    gaps = np.full(last[-1] + 1, _MOST, dtype=np.uint8)
    gaps[last] = steps - added * _MOST
    values = np.zeros(len(gaps), dtype=flat.dtype)
    values[last] = flat[places]
    size, shape = np.array([flat.size]), np.array(array.shape)
    stored = (gaps, values, np.array(0), size, shape)
    return [numpy_helper.from_array(one, f"{tensor.name}:{part}") for part, one in zip(_PARTS, stored, strict=True)]


def _decoded(name: str, parts: dict[str, NDArray[np.generic]], most_bytes: int) -> NDArray[np.generic]:
    """The tensor that the nodes make of its parts."""
    gaps, values, axis, size, shape = (parts[part] for part in _PARTS)
    kinds = (
        gaps.dtype == np.uint8,
        values.dtype in (np.float32, np.float16, np.int8),
        axis.shape == (),
        not axis.any(),
    )
    whole = [one.dtype == np.int64 for one in (axis, size, shape)]
    if not (all(kinds) and all(whole) and gaps.shape == values.shape == (len(gaps),) and size.shape == (1,)):
        raise ValueError(f"{name} is stored as gaps and values of other types or shapes than the file format's")
    dims = [int(dim) for dim in shape.reshape(-1)]
    total = int(size.reshape(-1)[0])
    wanted = total * values.dtype.itemsize
    if min(dims, default=1) < 1 or np.prod(dims, dtype=object) != total or wanted > most_bytes:
        raise ValueError(f"{name} would have the shape {dims} and {wanted} bytes of at most {most_bytes}")
    places = np.cumsum(gaps, dtype=np.int64)
    if not len(gaps) or places[-1] >= total or not gaps[1:].all():
        raise ValueError(f"the gaps of {name} leave its {total} places, or repeat one")
    flat = np.zeros(total, dtype=values.dtype)
    flat[places] = values
    return flat.reshape(dims)


def _decoding(name: str, data_type: int) -> list[NodeProto]:
    """The nodes that make a tensor of its parts."""
    part = {one: f"{name}:{one}" for one in (*_PARTS, "steps", "places", "zeros", "flat")}
    zero = helper.make_tensor("zero", data_type, [1], [0])

    def node(operator: str, inputs: Sequence[str], output: str, **attributes: int | TensorProto) -> NodeProto:
        made = helper.make_node(operator, [part[one] for one in inputs], [part[output]], name=part[output])
        made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return made

    return [
        node("Cast", ["gaps"], "steps", to=TensorProto.INT64),
        node("CumSum", ["steps", "axis"], "places"),
        node("ConstantOfShape", ["size"], "zeros", value=zero),
        node("ScatterElements", ["zeros", "places", "values"], "flat", axis=0),
        helper.make_node("Reshape", [part["flat"], part["shape"]], [name], name=f"{name}:dense"),
    ]
