"""Writing an ONNX graph node by node: names in one scope, constants and equal nodes stored once, dead ones left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

from s2ap_defend.stages import reads, rename_nodes
from s2ap_export.graph.rewrites import Rewrites

__all__ = ["BATCH", "IR_VERSION", "OPSET", "PRODUCER", "Attribute", "GraphBuilder", "Shape"]

OPSET = 20
IR_VERSION = 9  # the file format of operator set 20
PRODUCER = "s2ap-defend"
BATCH = "batch"

Attribute = int | float | str | Sequence[int]
"""Attribute of a node."""

Shape = tuple[int | str, ...]
"""Sizes of a value; a dynamic one has a name: BATCH, or 'batch_x4' for four rows per image."""


class GraphBuilder:
    """A graph under construction. All names it makes begin with `scope/`.

    Nodes that repeat an earlier one (same operator, inputs and attributes) are not added again, reshapes of reshapes
    become one, and those that change nothing vanish.
    """

    def __init__(self, scope: str, rewrites: Rewrites | None = None) -> None:
        self.scope = scope
        self.rewrites = rewrites or Rewrites()
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.products: dict[str, tuple[str, Tensor]] = {}  # value: what times which [C] it is, nothing added
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._known: dict[tuple[object, ...], tuple[str, ...]] = {}
        self._shapes: dict[str, Shape] = {}
        self._reshaped: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._declared: list[ValueInfoProto] = []

    def constant(self, value: NDArray[Any] | np.generic, name: str | None = None) -> str:
        """Name of the initialiser that holds an array; equal arrays share one."""
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            full = f"{self.scope}/{name}" if name else self._fresh("constant")
            if full in self.initializers:
                full = self._fresh(str(name))
            self.initializers[full] = numpy_helper.from_array(array, full)
            self._constants[key] = full
        return self._constants[key]

    def node(
        self, operator: str, inputs: Sequence[str], outputs: int, attributes: Mapping[str, Attribute]
    ) -> tuple[str, ...]:
        """Names of the outputs of a node."""
        key = (operator, tuple(inputs), outputs, repr(sorted(attributes.items())))
        if key not in self._known or not self.rewrites.shared_nodes:
            name = self._fresh(operator.lower())
            names = (name, *(f"{name}:{i}" for i in range(1, outputs)))
            node = helper.make_node(operator, list(inputs), list(names), name=name)
            node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
            self.nodes.append(node)
            self._known[key] = names
        return self._known[key]

    def op(self, operator: str, *inputs: str, **attributes: Attribute) -> str:
        """Name of the one output of a node."""
        return self.node(operator, inputs, 1, attributes)[0]

    def reshape(self, value: str, shape: Shape) -> str:
        """The value in another shape, its elements in the same order; at most one size is dynamic.

        A batch size that stays first is copied (0), so that engines know it is the same one and can reuse memory;
        for one that changes (-1) its name is declared.
        """
        source = self._reshaped.get(value, value) if self.rewrites.merged_reshapes else value
        before = self._shapes.get(source, ())
        if before == shape and self.rewrites.merged_reshapes:
            return source
        copied = before[:1] == shape[:1]
        sizes = [0 if copied and i == 0 else -1 if isinstance(size, str) else size for i, size in enumerate(shape)]
        result = self.op("Reshape", source, self.constant(np.array(sizes, dtype=np.int64)))
        if result not in self._reshaped and -1 in sizes:
            self._declared.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, shape))
        self._reshaped[result] = source
        self._shapes[result] = shape
        return result

    def remember_shape(self, value: str, shape: Shape) -> None:
        """Note the shape of a value, so that reshapes to it can vanish."""
        self._shapes[value] = shape

    def source_of(self, value: str) -> tuple[str, Shape]:
        """What a value was reshaped from (or itself), and the shape of that, () where it is not known."""
        source = self._reshaped.get(value, value)
        return source, self._shapes.get(source, ())

    def model(self, inputs: Sequence[ValueInfoProto], outputs: Sequence[tuple[str, ValueInfoProto]]) -> ModelProto:
        """The finished model.

        Args:
            inputs: Declarations of the inputs.
            outputs: For each output the value in the graph, and its declaration with the name it is known by outside.
        """
        names = {value: declared.name for value, declared in outputs}
        nodes = []
        needed = set(names)
        for node in reversed(self.nodes):
            if needed.isdisjoint(node.output):
                continue
            kept = NodeProto()
            kept.CopyFrom(node)
            needed.update(reads(node))
            nodes.append(kept)
        rename_nodes(nodes, names)
        used = [tensor for name, tensor in self.initializers.items() if name in needed]
        inner = [declared for declared in self._declared if declared.name in needed and declared.name not in names]
        graph = helper.make_graph(
            nodes[::-1], self.scope, list(inputs), [d for _, d in outputs], initializer=used, value_info=inner
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name = PRODUCER
        return model

    def _fresh(self, word: str) -> str:
        number = self._counts.get(word, 0)
        self._counts[word] = number + 1
        return f"{self.scope}/{word}_{number}"
