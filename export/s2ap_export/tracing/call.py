"""One call of a torch operator, and what it takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_export.graph.builder import BATCH, Attribute, GraphBuilder, Shape

__all__ = ["BatchDependenceError", "Call", "Value", "shape_of"]

Value = str | Tensor
"""The name of a value in the graph, or a constant."""


class BatchDependenceError(RecipeError):
    """A network reads other images of its batch; no way of writing it mends that."""


@dataclass(frozen=True)
class Call:
    """One call of a torch operator.

    Attributes:
        build: The graph.
        result: What it returns: a tensor without data, for its shape.
        inputs: Shapes of the arguments that are values, by position.
        taken: Positions of the results that are used, where there are several.
    """

    build: GraphBuilder
    result: Tensor
    inputs: Mapping[int, Shape]
    taken: Set[object] = frozenset()

    def name(self, value: Value | float) -> str:
        """Name of a value in the graph; constants are added to it."""
        if isinstance(value, str):
            return value
        array = value.detach().numpy() if isinstance(value, Tensor) else np.array(value, dtype=np.float32)
        return self.build.constant(array)

    def op(self, operator: str, *inputs: Value | float, **attributes: Attribute) -> str:
        """Name of the one output of a node."""
        return self.build.op(operator, *[self.name(value) for value in inputs], **attributes)

    def integers(self, values: Sequence[int]) -> str:
        """Name of a constant list of integers."""
        return self.build.constant(np.array(values, dtype=np.int64))

    @property
    def shape(self) -> Shape:
        """Shape of the result."""
        return shape_of(self.result)

    def shaped(self, value: str, shape: Shape) -> str:
        """The value, its shape noted."""
        self.build.remember_shape(value, shape)
        return value


def shape_of(value: Tensor) -> Shape:
    """Shape of a traced tensor, the sizes that grow with the batch by name."""
    return tuple(size if isinstance(size, int) else _dynamic(size) for size in value.shape)


def _dynamic(size: torch.SymInt) -> str:
    expression = size.node.expr
    rows = int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))  # of a batch of one image
    return BATCH if rows == 1 else f"{BATCH}_x{rows}"
