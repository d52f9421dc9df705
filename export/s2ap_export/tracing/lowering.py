"""From a graph that torch traced to ONNX nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from s2ap_defend.errors import RecipeError
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.tracing.call import Call, Value, shape_of
from s2ap_export.tracing.operators import OPERATORS

__all__ = ["lower"]

Inline = Callable[..., Sequence[Value]]
"""Given an operator's arguments, adds what it stands for to the graph and returns its values."""


def lower(
    traced: fx.GraphModule, images: str, build: GraphBuilder, *, inlined: Mapping[Any, Inline] | None = None
) -> list[Value]:
    """Add a traced function of images to a graph.

    What does not depend on the images (embeddings of constants, products of weights) is computed here, by torch.

    Args:
        traced: By `make_fx`, with symbolic sizes; one placeholder.
        images: The value in the graph that the function is applied to.
        build: The graph.
        inlined: Operators that stand for another traced function: what adds that to the graph.

    Returns:
        The values that the function returns.

    Raises:
        RecipeError: If the function contains an operator that cannot be exported.
    """
    values: dict[fx.Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            values[node] = images
            build.remember_shape(images, shape_of(node.meta["val"]))
        elif node.op == "get_attr":
            values[node] = operator.attrgetter(node.target)(traced)
        elif node.op == "output":
            returned = node.args[0]
            return [values[value] for value in (returned if isinstance(returned, (list, tuple)) else [returned])]
        elif node.op == "call_function" and not _is_size(node):
            values[node] = _evaluated(node, values, build, inlined or {})
    raise RecipeError("the traced function returns nothing")


def _is_size(node: fx.Node) -> bool:
    """Arithmetic on the batch size: the graph does without."""
    return isinstance(node.meta.get("val"), (torch.SymInt, int))


def _evaluated(
    node: fx.Node, values: Mapping[fx.Node, Any], build: GraphBuilder, inlined: Mapping[Any, Inline]
) -> object:
    arguments: Any = map_arg(node.args, values.get)  # None for sizes, which no lowering reads
    keywords: Any = map_arg(node.kwargs, values.get)
    if node.target is operator.getitem:
        return arguments[0][arguments[1]]
    if not _any_value(arguments) and all(n in values for n in node.all_input_nodes):
        with torch.no_grad():
            return node.target(*arguments, **keywords)  # type: ignore[operator]
    if node.target in inlined:
        return inlined[node.target](*arguments)
    if node.target not in OPERATORS:
        raise RecipeError(
            f"cannot export the torch operator {node.target}; rewrite the layer with convolutions, linear layers, "
            "pools, normalisations and activations"
        )
    shapes = {i: shape_of(a.meta["val"]) for i, a in enumerate(node.args) if isinstance(a, fx.Node) and _is_tensor(a)}
    keywords = {key: value for key, value in keywords.items() if key not in ("dtype", "layout", "device", "pin_memory")}
    taken = {user.args[1] for user in node.users if user.target is operator.getitem}
    result = OPERATORS[node.target](Call(build, node.meta["val"], shapes, taken), *arguments, **keywords)
    if isinstance(result, str):
        build.remember_shape(result, shape_of(node.meta["val"]))
    return result


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _any_value(arguments: object) -> bool:
    if isinstance(arguments, (list, tuple)):
        return any(_any_value(argument) for argument in arguments)
    return isinstance(arguments, str)
