"""A classifier that is an ONNX file alone: its graph as a torch module that is attacked and served, not trained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference, version_converter
from torch import Tensor, nn

from s2ap_defend.errors import DefendError, RecipeError
from s2ap_defend.model_file import all_graphs
from s2ap_defend.verification.lint import lint_stage
from s2ap_train.models.classifier import Classifier, ImageSize
from s2ap_train.models.logits import Reading, reading_of
from s2ap_train.models.normalisation import Normalisation
from s2ap_train.models.small_cnn import SmallCNN
from s2ap_train.onnx_graphs import ServedStage, TorchStage, UndifferentiableError, torch_stage, with_gradient_of

__all__ = ["NAME", "Layout", "OnnxNetwork"]

NAME = "onnx"
Layout = Literal["NCHW", "NHWC"]
_OPSET = 20
_WITHOUT_EFFECT = frozenset({"Dropout", "Identity"})
_ENDINGS = frozenset({"Softmax", "Sigmoid"})
_STANDARD = frozenset({"", "ai.onnx"})
_TRIED = 2
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, DefendError)
"""What torch and ONNX Runtime raise where a graph does not take the images."""


class OnnxNetwork(Classifier):
    """The graph of an ONNX file: images [N, C, H, W] in [0, 1] -> logits [N, K].

    Its weights are the file's and stay so. A softmax or sigmoid that it ends with is left out, other probabilities are
    recognised and made logits (`models.logits`); a graph that takes [N, H, W, C] or a fixed number of images is called
    as it wants to be.

    Where an operator has no gradient here, ONNX Runtime answers and the gradient is that of `surrogate`, which is to be
    trained on the graph's labels. Its weights are then the surrogate's, and a digest of the graph.

    Attributes:
        proto: The graph, with one input and one output.
        layout: How it takes images.
        normalisation: What pixels become before it.
        reading: What its outputs become behind it.
        surrogate: Images [N, C, H, W] -> logits [N, K]; None: the graph's own gradients can be had.
    """

    graph_digest: Tensor

    def __init__(
        self,
        file: str,
        in_channels: int = 3,
        classes: int = 10,
        image_size: ImageSize = 32,
        *,
        layout: Layout | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        logits: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Read the file and try it.

        Args:
            file: Its path.
            in_channels: Channels C of an image.
            classes: Number of classes K.
            image_size: Side of a square image, or (height, width), pixels.
            layout: "NCHW" or "NHWC"; None: as the graph's input says.
            mean: As of `Normalisation`.
            std: The same.
            logits: How its outputs become logits, the fields of a `Reading`; None: as found.
            seed: Of the surrogate's weights.

        Raises:
            RecipeError: If the file cannot be read or has other inputs, outputs or operators than a classifier of these
                images.
            ValueError: If the images are too small for a surrogate, and one is needed.
        """
        super().__init__(in_channels, classes, image_size)
        self.file = file
        self.normalisation = Normalisation(in_channels, mean, std)
        proto = _read(Path(file))
        self.layout: Layout = layout or _layout(proto, file, self.image_shape)
        self.proto = _prepared(proto, file, classes)
        exact = not Reading.of(logits or {}).log  # of one that says so the probabilities themselves are read
        self._ending = _without_ending(self.proto) if exact else None
        self._stage, self._lacks = self._made(self.proto)
        own = self._stage.as_parameters() if isinstance(self._stage, TorchStage) else []
        self.weights = nn.ParameterList(own)
        self.surrogate = SmallCNN(in_channels, classes, image_size=image_size, seed=seed) if self._lacks else None
        if self._lacks:
            digest = hashlib.sha256(self.proto.SerializeToString(deterministic=True)).digest()
            self.register_buffer("graph_digest", torch.tensor([*digest], dtype=torch.uint8))
        self.reading = Reading()
        self._check_outputs()
        self.reading = Reading.of(logits) if logits is not None else reading_of(self._tried())

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W] in [0, 1]."""
        logits = self.reading(self.unnormalised(self.normalisation(images)))
        if self.surrogate is None or not (images.requires_grad and torch.is_grad_enabled()):
            return logits
        return with_gradient_of(logits, self.surrogate(images))

    def unnormalised(self, images: Tensor) -> Tensor:
        """What the graph itself answers [N, K] to images [N, C, H, W] that were normalised already, or not at all."""
        return self._run(self._stage, images)

    @property
    def without_gradients(self) -> str:
        """What of it has no gradient here, so that those of a surrogate stand in; empty: its gradients are its own."""
        return self._lacks

    @property
    def refused_by_tensorrt(self) -> str:
        """The first node that TensorRT does not take, and why; empty: there is none."""
        return next(iter(lint_stage(self.proto)), "")

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found about it, as sentences."""
        turned = "the graph takes [N, H, W, C]: images are turned for it"
        ending = f"the graph ends in {self._ending}: what goes into it is taken as logits, labels stay as they are"
        blind = (
            f"gradients of the classifier cannot be had: {self._lacks}; attacks on it go by transfer, from a network "
            "that is trained on its labels, and by queries, which find less"
        )
        refused = self.refused_by_tensorrt
        return (
            *([turned] if self.layout == "NHWC" else []),
            *([ending] if self._ending else []),
            *self.reading.notes,
            *([blind] if self._lacks else []),
            *([f"the file will be for ONNX Runtime alone, not for TensorRT: {refused}"] if refused else []),
        )

    def arguments(self) -> dict[str, Any]:
        """Name and arguments that make this network, as JSON values."""
        return {
            "name": NAME,
            "file": self.file,
            "in_channels": self.in_channels,
            "classes": self.classes,
            "image_size": self.recorded_size,
            "layout": self.layout,
            **self.normalisation.arguments(),
            **({"logits": self.reading.changed} if self.reading.changed else {}),
        }

    def _made(self, proto: ModelProto) -> tuple[TorchStage | ServedStage, str]:
        """The graph in torch, or, where torch cannot have it, on ONNX Runtime, and what torch cannot have of it."""
        try:
            stage = torch_stage(proto)
        except UndifferentiableError as error:
            return self._served(proto), error.what
        except DefendError as error:
            raise RecipeError(f"{self.file}: {error}") from error
        try:
            self._run(stage, self._example())
        except _FAILURES as error:
            try:
                served = self._served(proto)
                self._run(served, self._example())
            except _FAILURES:  # neither takes these images, so they are at fault
                return stage, ""
            return served, f"its operators fail in torch ({_first_line(error)})"
        return stage, ""

    def _served(self, proto: ModelProto) -> ServedStage:
        try:
            return ServedStage(proto)
        except DefendError as error:
            raise RecipeError(f"{self.file}: {error}; export it again") from error

    def _run(self, stage: TorchStage | ServedStage, images: Tensor) -> Tensor:
        (outputs,) = stage(images if self.layout == "NCHW" else images.permute(0, 2, 3, 1))
        return outputs

    def _example(self) -> Tensor:
        return torch.rand(_TRIED, *self.image_shape, generator=torch.Generator().manual_seed(0))

    def _tried(self) -> Tensor:
        with torch.enable_grad():
            return self.unnormalised(self.normalisation(self._example().requires_grad_()))

    def _check_outputs(self) -> None:
        try:
            found = tuple(self._tried().shape)
        except _FAILURES as error:
            raise RecipeError(
                f"{self.file} cannot be run on {_TRIED} images of shape {list(self.image_shape)}: "
                f"{_first_line(error)}; export it for images of this size, with a batch of any size (dynamic_axes, or "
                "dynamic_shapes)"
            ) from error
        if found != (_TRIED, self.classes):
            raise RecipeError(
                f"{self.file} answers {list(found)} to {_TRIED} images, expected {[_TRIED, self.classes]}, a column a "
                "class: the data has another number of classes, or the graph another output"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _read(path: Path) -> ModelProto:
    try:
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf, onnx and the file system raise whatever a damaged file leads them to
        raise RecipeError(
            f"{path} is no ONNX model that can be read: {_first_line(error)[:200]}; export it again"
        ) from error
    foreign = next(
        (node for graph in all_graphs(proto.graph) for node in graph.node if node.domain not in _STANDARD), None
    )
    if foreign is not None or proto.functions:
        found = (
            f"functions, such as {proto.functions[0].name}"
            if foreign is None
            else (f"{foreign.domain}.{foreign.op_type} ({foreign.name or foreign.output[0]})")
        )
        raise RecipeError(
            f"{path} holds {found}, and a defended file holds operators of standard ONNX alone; export it without "
            "fused operators or functions, and quantise it in the format QDQ (QuantFormat.QDQ of onnxruntime)"
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


def _layout(proto: ModelProto, file: str, image_shape: tuple[int, int, int]) -> Layout:
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


def _prepared(proto: ModelProto, file: str, classes: int) -> ModelProto:
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
                f"{file} has opset {version}, which cannot be converted to {_OPSET}: {str(error).splitlines()[0]}; "
                "export it with another one"
            ) from error
    graph = proto.graph
    outputs = list(graph.output)
    if len(outputs) > 1:
        shaped = {one.name: _sizes(one) for one in shape_inference.infer_shapes(proto).graph.output}
        outputs = [one for one in outputs if shaped[one.name][1:] == [classes]]
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
    for node in graph.node:
        if node.op_type in _WITHOUT_EFFECT:
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name))
    return proto


def _without_ending(proto: ModelProto) -> str | None:
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
