"""Convolutions of 8-bit integers: Q/DQ nodes around them, as every engine reads them. Compression, never protection.

Weights are symmetric with a scale for every output channel (axis 0), values have one scale for the whole tensor, that
of least squared error on clean images. Values are symmetric, too, with zero point 0: TensorRT takes no other. Where
TensorRT is not wanted, what a ReLU lets pass has all 256 levels (zero point -128): rounding is the ReLU then, which
goes, and ONNX Runtime computes from convolution to convolution in integers.

Where a convolution is followed by a ReLU, its scale is that of what the ReLU lets pass, and layers behind that pick
values (ReLU, maxima of pools) have the same one, so that nothing is rounded twice.

The last layer of weights stays as it is: with 255 levels two classes are often equal, and evidence is a difference of
few. So do sums that are written as convolutions, and transposed convolutions. Biases are float32, which TensorRT wants;
ONNX Runtime makes integers of them by itself.

`onnxruntime.quantization` would round between a convolution and its ReLU with a scale of its own, quantise the last
layer's results, name nodes outside the stage and write its results to disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32
from s2ap_export.hardening.precision import CONVOLUTIONS, check_single, is_sum, replace_nodes
from s2ap_export.hardening.ranges import observed

__all__ = ["to_int8"]

_PICKS = frozenset({"Relu", "MaxPool"})
"""They give one of the values that they read, or 0: whatever the scale, no new number."""
_WEIGHTED = CONVOLUTIONS | {"Gemm", "MatMul"}
_LARGEST_BIAS = 2.0**30
"""Of a bias in units of what a sum counts in: ONNX Runtime stores it in 32 bits."""
_SYMMETRIC = 127  # levels on each side of zero; -128 is not used
_ONE_SIDED = 255


class Grid(NamedTuple):
    """The numbers that 8 bits stand for: scale * (integer - zero_point)."""

    scale: float
    zero_point: int


def to_int8(stage: ModelProto, images: Float32, *, symmetric: bool = True) -> ModelProto:
    """A stage whose convolutions, but for the last layer, are of 8-bit integers; input, outputs and names stay.

    Args:
        stage: As `trace_classifier` gives it, float32.
        images: Clean ones that the stage was not trained on, float32 [N, C, H, W]; scales are fitted to them.
        symmetric: Whether all zero points are 0, as TensorRT wants them.

    Raises:
        RecipeError: If the stage computes in less than float32 already, or has no convolution before its last layer.
    """
    check_single(stage)
    quantised = ModelProto()
    quantised.CopyFrom(stage)
    _Conversion(quantised, images, symmetric).convert()
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


class _Conversion:
    """Rewrites the graph of a model in place."""

    def __init__(self, model: ModelProto, images: Float32, symmetric: bool) -> None:
        self.graph = model.graph
        self.scope = model.graph.name
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.made_by = {name: node for node in self.graph.node for name in node.output}
        self.convolutions = {node.output[0]: node for node in self._quantised()}
        if not self.convolutions:
            raise RecipeError(
                f"stage {self.scope} has no convolution before its last layer that could be in int8; keep it in float32"
            )
        relus = {} if symmetric else {name: self._relu(name) for name in self.convolutions}
        self.same = {relu: name for name, relu in relus.items() if relu}  # what is rounded as its ReLU would be
        self.grids = self._grids(model, images)
        self.rounded: dict[str, str] = {}  # value -> its 8 bits as float32 again
        self.nodes: list[NodeProto] = []

    def convert(self) -> None:
        """Put Q/DQ nodes around the convolutions, and store their weights in 8 bits."""
        for node in list(self.graph.node):
            converted = NodeProto()
            converted.CopyFrom(node)
            converted.input[:] = [self.same.get(name, name) for name in node.input]
            name = node.output[0]
            if name in self.convolutions:
                converted.input[0] = self._read(converted.input[0])
                converted.input[1] = self._weight(node)
                converted.output[0] = f"{self._local(name)}_float32"
                self.nodes.append(converted)
                self._round(converted.output[0], name, self.grids[name])
            elif name not in self.same:
                self.nodes.append(converted)
        declared = [value for value in self.graph.value_info if value.name not in self.same]
        del self.graph.value_info[:]
        self.graph.value_info.extend(declared)
        replace_nodes(self.graph, self.nodes, self.weights)

    def _quantised(self) -> Iterator[NodeProto]:
        """Convolutions that other layers of weights follow."""
        leads: set[str] = set()  # values that a later layer of weights depends on
        for node in reversed(self.graph.node):
            weighted, followed = node.op_type in _WEIGHTED, not leads.isdisjoint(node.output)
            if weighted or followed:
                leads.update(node.input)
            weight = self.weights.get(node.input[1]) if node.op_type == "Conv" else None
            if weight is not None and followed and weight.data_type == TensorProto.FLOAT and not is_sum(weight):
                yield node

    def _grids(self, model: ModelProto, images: Float32) -> dict[str, Grid]:
        """What is rounded to what: the values that convolutions give and read."""
        shown = {name: self._relu(name) or name for name in self.convolutions}
        read = {node.input[0] for node in self.convolutions.values()}
        own = {name for name in read if self._picked_from(name) not in self.convolutions}
        seen = observed(model, sorted({*shown.values(), *own}), images)

        def grid(name: str, *, one_sided: bool) -> Grid:
            return Grid(seen[name].step(_ONE_SIDED), -128) if one_sided else Grid(seen[name].step(_SYMMETRIC), 0)

        grids = {name: grid(at, one_sided=at in self.same) for name, at in shown.items()}
        grids |= {name: grid(name, one_sided=False) for name in own}
        return grids | {name: grids[self._picked_from(name)] for name in read - own}

    def _relu(self, name: str) -> str:
        """What a ReLU makes of what a convolution gives; empty where anything else reads it."""
        readers = [node for node in self.graph.node if name in node.input]
        outputs = {output.name for output in self.graph.output}
        alone = name not in outputs and len(readers) == 1 and readers[0].op_type == "Relu"
        return readers[0].output[0] if alone and readers[0].output[0] not in outputs else ""

    def _picked_from(self, name: str) -> str:
        """The value that layers which pick values have a value from."""
        while name in self.made_by and self.made_by[name].op_type in _PICKS:
            name = self.made_by[name].input[0]
        return name

    def _read(self, name: str) -> str:
        """The name under which a convolution reads a value."""
        if name in self.convolutions:
            return name  # it is rounded already
        if name not in self.rounded:
            self.rounded[name] = f"{self._local(name)}_rounded"
            self._round(name, self.rounded[name], self.grids[name])
        return self.rounded[name]

    def _round(self, value: str, result: str, grid: Grid) -> None:
        """Q and DQ of one grid."""
        local = self._local(result)
        step = self._store(f"{local}_scale", np.float32(grid.scale))
        zero = self._store(f"{self.scope}/zero_point_{-grid.zero_point}", np.int8(grid.zero_point))
        self.nodes += [
            helper.make_node("QuantizeLinear", [value, step, zero], [f"{local}_int8"], name=f"{local}_quantize"),
            helper.make_node("DequantizeLinear", [f"{local}_int8", step, zero], [result], name=f"{local}_dequantize"),
        ]

    def _weight(self, convolution: NodeProto) -> str:
        """The weights of a convolution, rounded and as float32 again."""
        name = convolution.input[1]
        values = numpy_helper.to_array(self.weights[name])  # [C, ...]
        largest = np.abs(values).reshape(len(values), -1).max(axis=1)
        scales = np.where(largest > 0, largest, largest.max() or 1.0) / _SYMMETRIC  # what is 0 has a bias all the same
        if len(convolution.input) > 2 and convolution.input[2] in self.weights:
            bias = np.abs(numpy_helper.to_array(self.weights[convolution.input[2]]))
            scales = np.maximum(scales, bias / (self.grids[convolution.input[0]].scale * _LARGEST_BIAS))
        local, shape = self._local(convolution.output[0]), (-1, *(1,) * (values.ndim - 1))
        rounded = np.rint(values / scales.reshape(shape)).clip(-_SYMMETRIC, _SYMMETRIC).astype(np.int8)
        owner = local if f"{name}_int8" in self.weights else name  # another layer has the same weights
        stored = self._store(f"{owner}_int8", rounded)
        steps = self._store(f"{owner}_scale", scales.astype(np.float32))
        result = f"{local}_weight"
        self.nodes.append(helper.make_node("DequantizeLinear", [stored, steps], [result], name=result, axis=0))
        return result

    def _store(self, name: str, values: NDArray[np.generic] | np.generic) -> str:
        self.weights.setdefault(name, numpy_helper.from_array(np.asarray(values), name))
        return name

    def _local(self, name: str) -> str:
        return name if name.startswith(f"{self.scope}/") else f"{self.scope}/{name}"
