"""Whether TensorRT takes a stage: known without it, by the operators and types of the stage's graph.

The list is that of NVIDIA's parser for TensorRT 10.0 (onnx/onnx-tensorrt, docs/operators.md), which reads operator
sets 9 to 20, less what a stage may not hold for our own reasons: control flow, which no CUDA graph can capture;
operators whose result has a size that only its values decide; random numbers; float64, which TensorRT rounds to
float32; and integers of 16 bits or without sign, which it has for no value within a graph. Quantisation must be
symmetric: int8 with zero points 0. Whether a plan can be built, and is fast, only TensorRT itself says.
"""

from collections.abc import Iterator

import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

__all__ = ["OPSETS", "SUPPORTED", "lint_stage"]

OPSETS = range(9, 21)

SUPPORTED = frozenset(
    " ".join(
        (
            "Abs Add Ceil Clip CumSum Div Einsum Erf Exp Floor Gemm Log MatMul Max Mean Min Mod Mul Neg Pow",
            "Reciprocal Round Sign Sqrt Sub Sum",
            "Acos Acosh Asin Asinh Atan Atanh Cos Cosh Sin Sinh Tan Tanh",
            "And ArgMax ArgMin Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or TopK Where Xor",
            "Celu Elu Gelu HardSigmoid HardSwish Hardmax LeakyRelu LogSoftmax Mish PRelu Relu Selu Shrink Sigmoid",
            "Softmax Softplus Softsign ThresholdedRelu",
            "AveragePool BatchNormalization Conv ConvTranspose DeformConv Dropout GlobalAveragePool GlobalLpPool",
            "GlobalMaxPool GroupNormalization InstanceNormalization LRN LayerNormalization LpNormalization LpPool",
            "MaxPool MeanVarianceNormalization RoiAlign",
            "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum",
            "ReduceSumSquare",
            "Cast CastLike Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather",
            "GatherElements GatherND GridSample Identity OneHot Pad Range Reshape Resize ReverseSequence",
            "ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze",
            "DequantizeLinear QuantizeLinear",
        )
    ).split()
)
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_DATA_DEPENDENT = frozenset({"NonZero", "Compress", "Unique", "NonMaxSuppression"})
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_WIDE = {TensorProto.DOUBLE, TensorProto.COMPLEX64, TensorProto.COMPLEX128}
_FOREIGN = _WIDE | {
    TensorProto.UINT8,
    TensorProto.INT16,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
    TensorProto.STRING,
}
"""Types that no value of a stage may have."""
_AXES = ("CumSum", "Split", "Squeeze", "Unsqueeze", *(name for name in sorted(SUPPORTED) if name.startswith("Reduce")))
_SIZES = dict.fromkeys(_AXES, slice(1, 2)) | {
    "ConstantOfShape": slice(0, 1),
    "Expand": slice(1, 2),
    "OneHot": slice(1, 2),
    "Pad": slice(1, 2),
    "Range": slice(0, 3),
    "Reshape": slice(1, 2),
    "Resize": slice(1, 4),
    "Slice": slice(1, 5),
    "Tile": slice(1, 2),
    "TopK": slice(1, 2),
}
"""Which inputs of an operator are sizes or axes."""


def lint_stage(stage: ModelProto) -> list[str]:
    """What TensorRT would refuse or change, with the node's name, for people; empty: nothing.

    Args:
        stage: As `cut_stage` cuts it, or as it was traced.
    """
    opset = next((one.version for one in stage.opset_import if one.domain in {"", "ai.onnx"}), 0)
    found = [] if opset in OPSETS else [f"operator set {opset}, expected {OPSETS.start} to {OPSETS.stop - 1}"]
    found += [_named(node, reason) for node in stage.graph.node if (reason := _refused(node))]
    foreign = [
        f"{name} is {TensorProto.DataType.Name(kind).lower()}" for name, kind in _types(stage) if kind in _FOREIGN
    ]
    return [*found, *foreign, *_asymmetric(stage), *_sizes_from_values(stage)]


def _refused(node: NodeProto) -> str:
    if node.domain not in {"", "ai.onnx"}:
        return f"{node.domain}.{node.op_type} is no operator of standard ONNX"
    if node.op_type in _CONTROL_FLOW:
        return f"{node.op_type} is control flow, which cannot be captured in a CUDA graph"
    if node.op_type in _DATA_DEPENDENT:
        return f"the size of what {node.op_type} gives depends on values"
    if node.op_type in _RANDOM:
        return f"{node.op_type} takes random numbers"
    if node.op_type not in SUPPORTED:
        return f"TensorRT has no {node.op_type}"
    if node.op_type == "MaxPool" and len(node.output) > 1:
        return "TensorRT has no indices of MaxPool"
    if node.op_type == "Cast" and next(one.i for one in node.attribute if one.name == "to") in _WIDE:
        return "Cast to float64, which TensorRT rounds to float32"
    return ""


def _named(node: NodeProto, reason: str) -> str:
    return f"{node.name or node.output[0]}: {reason}"


def _types(stage: ModelProto) -> Iterator[tuple[str, int]]:
    """Values and tensors with their element types."""
    graph = onnx.shape_inference.infer_shapes(stage).graph
    yield from ((one.name, one.type.tensor_type.elem_type) for one in (*graph.input, *graph.output, *graph.value_info))
    yield from ((tensor.name, tensor.data_type) for tensor in graph.initializer)
    for node in graph.node:
        yield from ((node.name or node.output[0], one.t.data_type) for one in node.attribute if one.HasField("t"))


def _asymmetric(stage: ModelProto) -> Iterator[str]:
    """Q/DQ nodes of other integers than int8 around zero."""
    tensors = {tensor.name: tensor for tensor in stage.graph.initializer}
    for node in stage.graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        point = tensors.get(node.input[2]) if len(node.input) > 2 else None
        unsigned = point is None and node.op_type == "QuantizeLinear"  # its default
        if unsigned or (
            point is not None and (point.data_type != TensorProto.INT8 or numpy_helper.to_array(point).any())
        ):
            yield _named(node, f"{node.op_type} with a zero point that is not int8 0")


def _sizes_from_values(stage: ModelProto) -> Iterator[str]:
    """Nodes that take a size from the values of an image, followed from the input through the graph.

    A size that comes from the shape of a value is known before anything runs, one that comes from its values is not.
    """
    tainted = {stage.graph.input[0].name} if stage.graph.input else set()
    for node in stage.graph.node:
        if tainted.intersection(node.input[_SIZES.get(node.op_type, slice(0))]):
            yield _named(node, f"{node.op_type} takes a size or axis from the values of an image")
        if node.op_type not in {"Shape", "Size"} and tainted.intersection(node.input):
            tainted.update(node.output)
