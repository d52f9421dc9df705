"""An ONNX file of a classifier: read, brought to one operator set, one output and any number of images."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference, version_converter
from onnx.inliner import inline_local_functions

from s2ap_defend.errors import RecipeError, first_line
from s2ap_defend.model_file import all_graphs

__all__ = ["Layout", "layout_of", "prepared", "read_graph", "without_ending"]

Layout = Literal["NCHW", "NHWC"]
_OPSET = 20
_WITHOUT_EFFECT = frozenset({"Dropout", "Identity"})
_ENDINGS = frozenset({"Softmax", "Sigmoid"})
_STANDARD = frozenset({"", "ai.onnx"})


def read_graph(path: Path) -> ModelProto:
    """The graph of a file, its functions inlined: one input of float32 images, operators of standard ONNX.

    Raises:
        RecipeError: If it cannot be read or holds something else.
    """
    try:
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
        proto = inline_local_functions(proto) if proto.functions else proto
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}; name an ONNX file") from error
    except Exception as error:  # protobuf and onnx raise whatever a damaged file leads them to
        if zipfile.is_zipfile(path):
            raise RecipeError(
                f"{path} is an archive as torch.save and torch.jit.save write them, no ONNX model; export the network "
                "with torch.onnx.export, or give its weights with --weights and its function with --model"
            ) from error
        raise RecipeError(
            f"{path} is no ONNX model that can be read: {first_line(error)[:200].rstrip('.')}; export it again"
        ) from error
    nodes = (node for graph in all_graphs(proto.graph) for node in graph.node)
    foreign = next((node for node in nodes if node.domain not in _STANDARD), None)
    if foreign is not None:
        found = f"{foreign.domain}.{foreign.op_type} ({foreign.name or foreign.output[0]})"
        raise RecipeError(
            f"{path} holds {found}, and a defended file holds operators of standard ONNX alone; export it without "
            "fused operators, and quantise it in the format QDQ (QuantFormat.QDQ of onnxruntime)"
        )
    inputs = _inputs(proto)
    if len(inputs) != 1:
        raise RecipeError(f"{path} has the inputs {', '.join(one.name for one in inputs)}, expected one, the images")
    kind = inputs[0].type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        raise RecipeError(
            f"{path} takes {TensorProto.DataType.Name(kind).lower()} images, expected float32; export it without the "
            "conversion of its input"
        )
    return proto


def _inputs(proto: ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {one.name for one in proto.graph.initializer}
    return [one for one in proto.graph.input if one.name not in weights]


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [one.dim_value if one.HasField("dim_value") else None for one in value.type.tensor_type.shape.dim]


def layout_of(proto: ModelProto, file: str, image_shape: tuple[int, int, int]) -> Layout:
    """How the graph wants images, by its input.

    Raises:
        RecipeError: If it takes no images of this shape.
    """
    sizes = _sizes(_inputs(proto)[0])
    channels, height, width = image_shape

    def fits(*wanted: int) -> bool:
        return len(sizes) == 4 and all(found in (None, size) for found, size in zip(sizes[1:], wanted, strict=True))

    if fits(channels, height, width):
        return "NCHW"
    if fits(height, width, channels):
        return "NHWC"
    shown = ["N" if one is None else one for one in sizes]
    raise RecipeError(
        f"{file} takes images of shape {shown}, the data has {list(image_shape)} a picture; resize the data with "
        "--image-size, or export the graph for this size"
    )


def prepared(proto: ModelProto, file: str, classes: int) -> ModelProto:
    """The graph with one output, of a newer opset, for any number of images.

    Raises:
        RecipeError: If no output has a column a class, or the opset cannot be converted.
    """
    version = next((one.version for one in proto.opset_import if one.domain in {"", "ai.onnx"}), 0)
    if version != _OPSET:
        try:
            proto = version_converter.convert_version(proto, _OPSET)
        except Exception as error:  # RuntimeError and others, of the converter's C++
            raise RecipeError(
                f"{file} has opset {version}, which cannot be converted to {_OPSET}: {first_line(error)}; "
                "export it with another one"
            ) from error
    graph = proto.graph
    outputs = list(graph.output)
    shaped = {one.name: _sizes(one) for one in shape_inference.infer_shapes(proto).graph.output}
    if len(outputs) > 1:
        outputs = [one for one in outputs if _without_ones(shaped[one.name])[1:] == [classes]]
    if len(outputs) != 1:
        names = ", ".join(one.name for one in graph.output)
        raise RecipeError(f"{file} has the outputs {names}, expected one with {classes} columns, a column a class")
    images = _inputs(proto)[0]
    fixed = _sizes(images)[0]
    del graph.output[:], graph.input[:]
    graph.output.extend(outputs)
    graph.input.extend([images])
    if fixed is not None:
        _any_batch(graph, fixed)
    if len(shaped[outputs[0].name]) > len(_without_ones(shaped[outputs[0].name])):
        name = f"{outputs[0].name}/columns"
        graph.node.append(helper.make_node("Flatten", [outputs[0].name], [name], name=name, axis=1))
        graph.output[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, classes]))
    for node in graph.node:
        if node.op_type in _WITHOUT_EFFECT:
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name))
    return proto


def _without_ones(sizes: list[int | None]) -> list[int | None]:
    """Sizes of an output [N, K, 1, ...] without the ones behind its columns."""
    return sizes[:2] if all(size == 1 for size in sizes[2:]) else sizes


def without_ending(proto: ModelProto) -> str | None:
    """Take a last softmax over the classes, or sigmoid, out of a graph; which it was, None: there was none."""
    (output,) = proto.graph.output
    last = next((node for node in proto.graph.node if output.name in node.output), None)
    read = any(output.name in node.input for node in proto.graph.node)
    if last is None or read or last.op_type not in _ENDINGS:
        return None
    axis = next((attribute.i for attribute in last.attribute if attribute.name == "axis"), -1)
    if axis not in {-1, 1}:
        return None
    kind = last.op_type
    last.CopyFrom(helper.make_node("Identity", last.input[:1], last.output[:1], name=last.name))
    return kind


def _any_batch(graph: onnx.GraphProto, fixed: int) -> None:
    """Let a graph that was exported for a fixed number of images take any: reshapes keep the first dimension."""
    read = {node.input[1] for node in graph.node if node.op_type == "Reshape" and len(node.input) > 1}
    constants = [node for node in graph.node if node.op_type == "Constant" and node.output[0] in read]
    tensors = [one for one in graph.initializer if one.name in read]
    tensors += [attribute.t for node in constants for attribute in node.attribute if attribute.name == "value"]
    for tensor in tensors:
        shape = numpy_helper.to_array(tensor).copy()
        if shape.ndim == 1 and len(shape) > 1 and shape[0] == fixed:
            shape[0] = 0  # as the input has it
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
