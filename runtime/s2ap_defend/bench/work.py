"""Floating point operations and bytes of a stage, counted from its graph."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper
from onnx.inliner import inline_local_functions

from s2ap_defend.model_file import all_graphs

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Work:
    """What a stage cannot do without.

    Attributes:
        flops: Of the convolutions and matrix products of one image; a multiply-add counts 2. Everything else counts
            nothing: what a network needs besides its products depends on how they are fused.
        weight_bytes: Of all its tensors, read once a batch.
        image_bytes: Of one image's input and outputs.
    """

    flops: int
    weight_bytes: int
    image_bytes: int


def count_work(stage: ModelProto) -> Work | None:
    """Count a stage that `cut_stage` cut; None where the sizes of a product are not known before it runs."""
    single = ModelProto()
    single.CopyFrom(inline_local_functions(stage) if stage.functions else stage)
    del single.graph.value_info[:]
    image = single.graph.input[0]  # others are initialisers
    for value in (image, *single.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    shapes = dict(_shapes(graph))
    try:
        flops = sum(_flops(node, shapes) for inner in all_graphs(graph) for node in inner.node)
    except KeyError:
        return None
    weights = sum(_bytes(tensor.data_type, tensor.dims) for inner in all_graphs(graph) for tensor in inner.initializer)
    values = (image, *graph.output)
    return Work(flops, weights, sum(_bytes(one.type.tensor_type.elem_type, shapes[one.name]) for one in values))


def _shapes(graph: GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    for inner in all_graphs(graph):
        yield from ((tensor.name, tuple(tensor.dims)) for tensor in inner.initializer)
        for value in (*inner.input, *inner.output, *inner.value_info):
            if _is_known(value):
                yield value.name, tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _is_known(value: ValueInfoProto) -> bool:
    shape = value.type.tensor_type.shape
    return value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in shape.dim)


def _flops(node: NodeProto, shapes: Shapes) -> int:
    """Of one node; KeyError where the shape of what it multiplies is not known."""
    match node.op_type:
        case "Conv" | "ConvInteger":
            return 2 * prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
        case "ConvTranspose":
            return 2 * prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])
        case "QLinearConv":
            return 2 * prod(shapes[node.output[0]]) * prod(shapes[node.input[3]][1:])
        case "MatMul" | "MatMulInteger" | "QLinearMatMul":
            return 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        case "Gemm":
            transposed = any(one.name == "transA" and one.i for one in node.attribute)
            return 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]
        case _:
            return 0


def _bytes(data_type: int, shape: Iterable[int]) -> int:
    return prod(shape) * helper.tensor_dtype_to_np_dtype(data_type).itemsize
