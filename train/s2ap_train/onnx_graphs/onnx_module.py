"""An ONNX stage as a differentiable torch function: the white-box attacker's view of the file that is served.

The weights and the operators are those of the file, not of the network it was exported from. What the file computes in
float16 is computed in the stage's type and rounded, and so is what it rounds to 8 bits (fake quantisation). Where the
stage contains gradient operators that were traced into it (the purifier), autograd through them is the exact unrolled
gradient.
"""

import math
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor

from s2ap_defend.errors import ModelFileError
from s2ap_train.onnx_graphs.operators import INTEGERS, OPERATORS, STRAIGHT_THROUGH_OPERATORS
from s2ap_train.onnx_graphs.rearranging import Function
from s2ap_train.onnx_graphs.segments import Step
from s2ap_train.onnx_graphs.stage import TorchStage

__all__ = ["UndifferentiableError", "torch_stage"]

_SINGLE_OR_HALF = {TensorProto.FLOAT, TensorProto.FLOAT16}

_CHANNELS_LAST_PIXELS = 256
"""Pixels of an image from which convolutions keep channels last: 1.4 to 1.5 times as fast at 28x28 on a CPU, forward
and back through all stages, and .86 to .98 at 8x8."""


class UndifferentiableError(ModelFileError):
    """A stage holds an operator, or a setting of one, that is not computed here.

    Args:
        message: For people.
        what: The operator and its node.
    """

    def __init__(self, message: str, what: str) -> None:
        super().__init__(message)
        self.what = what


def torch_stage(
    stage: ModelProto,
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    straight_through: bool = False,
    segments: int = 1,
) -> TorchStage:
    """Turn a stage with one input into a differentiable function of torch tensors.

    What does not depend on the image is computed once, here. The function holds no state and may be called from
    several threads.

    Args:
        stage: ONNX model with one input, as `s2ap_defend.stages.cut_stage` gives it.
        device: Where weights live and the images must be.
        dtype: torch.float32, or torch.float64 for gradient checks; images must have it.
        straight_through: Clip, rounding, sign and casts to integers and back pass gradients on unchanged, Clip also
            outside its bounds; values stay exact.
        segments: How many the stage is cut into; the backward pass keeps what lies between them and computes the rest
            again: less memory, half as much time again. The gradient is the same to the last bit. 1 keeps everything.

    Raises:
        ModelFileError: If the stage has more than one input; an UndifferentiableError: an operator that is not
            supported.
        ValueError: Without a segment.
    """
    if segments < 1:
        raise ValueError(f"a stage is evaluated in one segment or more, got {segments}")
    if len(stage.graph.input) != 1:
        raise ModelFileError(f"a stage has one input, this graph has {[i.name for i in stage.graph.input]}")
    builder = _Builder(torch.device(device), dtype, straight_through)
    return builder.build(stage, segments)


class _Builder:
    def __init__(self, device: torch.device, dtype: torch.dtype, straight_through: bool) -> None:
        self.device = device
        self.dtype = dtype
        self.straight_through = straight_through
        self.operators = STRAIGHT_THROUGH_OPERATORS if straight_through else OPERATORS
        self.slots: list[Tensor | None] = [None]
        self.slot_of: dict[str, int] = {"": 0}
        self.half: set[str] = set()  # values that the file computes in float16
        self.channels_last: set[str] = set()  # weights: what their convolutions give has their layout
        self.cast_from: dict[str, tuple[str, torch.dtype]] = {}  # integer value -> what it was cast from, and its type

    def build(self, stage: ModelProto, segments: int) -> TorchStage:
        graph = stage.graph
        self.channels_last = _windows(graph) if _pixels(graph) >= _CHANNELS_LAST_PIXELS else set()
        for initializer in graph.initializer:
            self._slot(initializer.name, self._tensor(initializer))
            if initializer.data_type == TensorProto.FLOAT16:
                self.half.add(initializer.name)
        image = self._slot(graph.input[0].name)
        steps: list[Step] = []
        for node in _needed(graph.node, {output.name for output in graph.output}):
            function = self._function(node)
            inputs = tuple(self._known(name, node) for name in self._read(node))
            if all(slot == 0 or self.slots[slot] is not None for slot in inputs):
                self._evaluate(node, function, inputs)
            else:
                outputs = tuple(self._slot(name) for name in node.output)
                steps.append(Step(function, inputs, outputs))
        results = [self.slot_of[output.name] for output in graph.output]
        return TorchStage(self.slots, image, self._freeing(steps, set(results)), results, segments=segments)

    def _slot(self, name: str, value: Tensor | None = None) -> int:
        if value is not None and name in self.channels_last and value.dim() == 4:
            value = value.to(memory_format=torch.channels_last)
        self.slots.append(value)
        self.slot_of[name] = len(self.slots) - 1
        return self.slot_of[name]

    def _known(self, name: str, node: NodeProto) -> int:
        if name not in self.slot_of:
            raise ModelFileError(f"{_title(node)} reads {name!r}, which the stage does not define")
        return self.slot_of[name]

    def _evaluate(self, node: NodeProto, function: Function, inputs: tuple[int, ...]) -> None:
        with torch.no_grad():
            result = function(*[self.slots[slot] for slot in inputs])
        for name, value in zip(node.output, (result,) if isinstance(result, Tensor) else result, strict=True):
            self._slot(name, value)

    def _tensor(self, proto: TensorProto) -> Tensor:
        value = torch.from_numpy(numpy_helper.to_array(proto).copy())
        return value.to(self.device, self.dtype) if value.is_floating_point() else value

    def _function(self, node: NodeProto) -> Function:
        attributes: dict[str, Any] = {
            a.name: self._tensor(a.t) if a.type == AttributeProto.TENSOR else onnx.helper.get_attribute_value(a)
            for a in node.attribute
        }
        if node.op_type == "Constant" and not node.domain:
            value = self._constant(node, attributes)
            return lambda: value
        if node.op_type == "ConstantOfShape":
            attributes.setdefault("value", torch.zeros(1, dtype=self.dtype, device=self.device))
        if node.op_type not in self.operators or node.domain not in {"", "ai.onnx"}:
            raise UndifferentiableError(
                f"{_title(node)} cannot be differentiated: operator {_operator(node)} is not supported by the twin; "
                "export the stage without it",
                f"operator {_operator(node)} ({_title(node)})",
            )
        if node.op_type == "Cast" and attributes["to"] in _SINGLE_OR_HALF:
            cast = self._to_floating(node)
            return self._rounding(node, cast, attributes["to"] == TensorProto.FLOAT16)
        if node.op_type == "Cast" and attributes["to"] in INTEGERS:
            self.cast_from[node.output[0]] = node.input[0], INTEGERS[attributes["to"]]
        try:
            function = self.operators[node.op_type](attributes)
        except (ValueError, KeyError) as error:
            raise UndifferentiableError(
                f"{_title(node)} cannot be differentiated: {error} is not supported",
                f"operator {_operator(node)} with {error} ({_title(node)})",
            ) from error
        return self._rounding(node, function, not self.half.isdisjoint(node.input) and node.op_type != "Cast")

    def _read(self, node: NodeProto) -> Sequence[str]:
        """Names of the values that the function of a node takes: its inputs, or what was cast to integers before."""
        if self._is_cast_back(node):
            return [self.cast_from[node.input[0]][0]]
        return node.input

    def _to_floating(self, node: NodeProto) -> Function:
        if not self._is_cast_back(node):
            return lambda x: x.to(self.dtype)
        integer = self.cast_from[node.input[0]][1]

        def through(x: Tensor) -> Tensor:
            value = x.detach().to(integer).to(self.dtype)
            return x + (value - x).detach() if x.is_floating_point() else value

        return through

    def _is_cast_back(self, node: NodeProto) -> bool:
        """Whether a node makes floating numbers of integers that were floating before, and gradients are to pass."""
        return self.straight_through and node.op_type == "Cast" and node.input[0] in self.cast_from

    def _rounding(self, node: NodeProto, function: Function, half: bool) -> Function:
        """The function, its result rounded to float16 where the file does; gradients pass the rounding unchanged."""
        if not half:
            return function
        self.half.update(node.output)

        def rounded(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
            exact: Tensor | tuple[Tensor, ...] = function(*inputs)
            if isinstance(exact, Tensor) and exact.is_floating_point():  # not indices; outputs of a split are rounded
                return exact + (exact.to(torch.float16).to(exact.dtype) - exact).detach()
            return exact

        return rounded

    def _constant(self, node: NodeProto, attributes: dict[str, Any]) -> Tensor:
        for name, dtype in (("value_float", self.dtype), ("value_floats", self.dtype)):
            if name in attributes:
                return torch.tensor(attributes[name], dtype=dtype, device=self.device)
        for name in ("value_int", "value_ints"):
            if name in attributes:
                return torch.tensor(attributes[name], dtype=torch.int64)
        if "value" not in attributes:
            raise ModelFileError(f"{_title(node)} is a constant without numbers")
        value: Tensor = attributes["value"]
        return value

    def _freeing(self, steps: list[Step], kept: set[int]) -> list[Step]:
        last = {slot: i for i, step in enumerate(steps) for slot in (*step.outputs, *step.inputs)}
        constant = {slot for slot, value in enumerate(self.slots) if value is not None} | {0}
        dead: list[list[int]] = [[] for _ in steps]
        for slot, i in last.items():
            if slot not in kept and slot not in constant:
                dead[i].append(slot)
        return [Step(s.function, s.inputs, s.outputs, tuple(d)) for s, d in zip(steps, dead, strict=True)]


def _windows(graph: GraphProto) -> set[str]:
    """Names of the weights of convolutions."""
    return {node.input[1] for node in graph.node if node.op_type in {"Conv", "ConvTranspose"}}


def _pixels(graph: GraphProto) -> int:
    """Places of an image [N, C, H, W] that the graph takes; sides that are not fixed count as 1."""
    sides = graph.input[0].type.tensor_type.shape.dim[2:]
    return math.prod(max(side.dim_value, 1) for side in sides)


def _needed(nodes: Sequence[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """Nodes that the outputs depend on, in their order."""
    wanted, needed = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(node.input)
    return needed[::-1]


def _operator(node: NodeProto) -> str:
    return f"{node.domain or 'ai.onnx'}.{node.op_type}"


def _title(node: NodeProto) -> str:
    return f"node {node.name or node.output[0]!r}"
