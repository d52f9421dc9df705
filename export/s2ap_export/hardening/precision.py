"""Half precision where it is safe: convolutions, SiLU, and what only picks values between them. The rest is float32.

A convolution of float16 values is accumulated in float32 by the engines that have one, so each loses no more than the
rounding of its inputs and outputs. A sum of squares over a large image exceeds 65504, the largest float16 number, and a
small gradient step vanishes against a pixel: neither is touched, and no norm or softmax is. ReLU and the maximum of a
pool give one of the values that they read, exactly: behind a convolution they stay in float16. The score model predicts
noise, not the image, so that no difference of two nearly equal images is taken in half precision either.

ONNX Runtime has no float16 convolutions on x86: there it computes them in float32 between casts, which costs time. This
is for GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from s2ap_defend.errors import RecipeError
from s2ap_defend.half_weights import is_sum as is_sum_of
from s2ap_defend.precision_record import Precision, weights_precision

__all__ = [
    "CONVOLUTIONS",
    "ROUNDED_WEIGHTS",
    "check_single",
    "half_of",
    "is_half",
    "is_sum",
    "precision_of",
    "to_half",
]

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
ROUNDED_WEIGHTS = "weights"
"""Property of a stage whose weights were rounded, with what they were rounded to."""
_EXACT = frozenset({"Relu", "MaxPool"})
"""They give one of the values that they read, or 0."""


def to_half(stage: ModelProto) -> ModelProto:
    """A stage whose convolutions are computed in float16; its input, outputs and names stay as they are.

    Values that both precisions read are converted once, by `Cast` nodes named in the stage's scope. Weights are stored
    once, in half; those that a float32 node reads as well are stored in both.

    Args:
        stage: As `trace_purifier`, `trace_images` or `trace_classifier` gives it, float32.

    Raises:
        RecipeError: If a weight is too large for float16, or the stage already holds half precision.
    """
    if is_half(stage):
        raise RecipeError(f"stage {stage.graph.name} is in half precision already; convert the float32 stage, once")
    half = ModelProto()
    half.CopyFrom(stage)
    _Conversion(half).convert()
    onnx.checker.check_model(half, full_check=True)
    return half


def is_half(stage: ModelProto) -> bool:
    """Whether a stage holds weights in float16."""
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in stage.graph.initializer)


def precision_of(stage: ModelProto) -> Precision:
    """What the convolutions of a stage compute in, or are rounded to."""
    rounded = any(one.key == ROUNDED_WEIGHTS for one in stage.metadata_props)
    return "float16_weights" if rounded else weights_precision(stage.graph.initializer)


def check_single(stage: ModelProto) -> None:
    """Refuse a stage that is in less than float32 already.

    Raises:
        RecipeError: With what it is in.
    """
    if precision_of(stage) != "float32":
        raise RecipeError(
            f"stage {stage.graph.name} is in {precision_of(stage)} already; convert the float32 stage, once"
        )


def half_of(weight: TensorProto) -> NDArray[np.float16]:
    """The weight rounded to float16.

    Raises:
        RecipeError: If it is too large for that.
    """
    values = numpy_helper.to_array(weight)
    largest = float(np.abs(values).max(initial=0))
    if not largest <= float(np.finfo(np.float16).max):
        raise RecipeError(
            f"weight {weight.name} holds {largest:.3g}, float16 ends at 65504; keep this stage in float32"
        )
    return values.astype(np.float16)


def is_sum(weight: TensorProto) -> bool:
    """Whether a convolution is a sum: engines would add up reductions in another order.

    Args:
        weight: Its weights; those of sums and means are equal, [1, n, 1, 1].
    """
    return is_sum_of(numpy_helper.to_array(weight))


def replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto], weights: Mapping[str, TensorProto]) -> None:
    """Give a graph other nodes, in place, and those weights, by name, that one of them reads."""
    used = {name for node in nodes for name in node.input}
    stored = [tensor for name, tensor in weights.items() if name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(stored)


class _Conversion:
    """Rewrites the graph of a model in place."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.half_nodes = {node.name for node in self._in_half()}
        self.half_values = {name for node in self.graph.node if node.name in self.half_nodes for name in node.output}
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []

    def convert(self) -> None:
        """Put casts between the two precisions, and store the weights of half nodes in half."""
        outputs = {output.name for output in self.graph.output}
        for node in list(self.graph.node):
            target = TensorProto.FLOAT16 if node.name in self.half_nodes else TensorProto.FLOAT
            read = [self._read(name, target) for name in node.input]
            converted = NodeProto()
            converted.CopyFrom(node)
            converted.input[:] = read
            for i, name in enumerate(node.output):
                if name in outputs and node.name in self.half_nodes:
                    converted.output[i] = f"{self.graph.name}/{name}_half"
                    self.nodes += [converted, self._cast(converted.output[i], name, TensorProto.FLOAT)]
                    break
            else:
                self.nodes.append(converted)
        replace_nodes(self.graph, self.nodes, self.weights)

    def _in_half(self) -> Iterator[NodeProto]:
        sigmoids: dict[str, tuple[str, NodeProto]] = {}
        convolved: set[str] = set()  # values that are half since a convolution, however often they were picked from
        for node in self.graph.node:
            weight = self.weights.get(node.input[1]) if node.op_type in CONVOLUTIONS else None
            convolves = weight is not None and not is_sum(weight)
            if convolves or (node.op_type in _EXACT and node.input[0] in convolved):
                convolved.add(node.output[0])
                yield node
            elif node.op_type == "Sigmoid":
                sigmoids[node.output[0]] = (node.input[0], node)
            elif node.op_type == "Mul":
                for s, x in (tuple(node.input), tuple(node.input)[::-1]):
                    if s in sigmoids and sigmoids[s][0] == x:
                        yield sigmoids[s][1]
                        yield node

    def _read(self, name: str, target: int) -> str:
        """The name under which a node of the target precision reads a value."""
        if name in self.weights:
            return self._half_weight(name) if target == TensorProto.FLOAT16 else name
        is_half = name in self.half_values
        if not name or is_half == (target == TensorProto.FLOAT16):
            return name
        key = (name, target)
        if key not in self.casts:
            word = "half" if target == TensorProto.FLOAT16 else "single"
            self.casts[key] = f"{self.graph.name}/{word}_{len(self.casts)}"
            self.nodes.append(self._cast(name, self.casts[key], target))
        return self.casts[key]

    def _half_weight(self, name: str) -> str:
        tensor = self.weights[name]
        if tensor.data_type != TensorProto.FLOAT:
            return name
        shared = any(name in node.input and node.name not in self.half_nodes for node in self.graph.node)
        stored = f"{name}_half" if shared else name
        if stored not in self.weights or not shared:
            self.weights[stored] = numpy_helper.from_array(half_of(tensor), stored)
        return stored

    def _cast(self, value: str, result: str, target: int) -> NodeProto:
        name = result if "/" in result else f"{self.graph.name}/{result}"
        return helper.make_node("Cast", [value], [result], name=name, to=target)
