"""Names of a stage: the prefix that all its nodes, inner values and initialisers carry."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, ModelProto

__all__ = ["rename_scope", "rename_values"]


def rename_scope(stage: ModelProto, scope: str) -> ModelProto:
    """A copy of a stage with another scope; its graph carries the scope as its name.

    Inputs and outputs keep their plain names.
    """
    copied = ModelProto()
    copied.CopyFrom(stage)
    graph = copied.graph
    before = f"{graph.name}/"
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    names += [tensor.name for tensor in graph.initializer]
    renamed = {name: f"{scope}/{name.removeprefix(before)}" for name in names if name.startswith(before)}
    rename_values(graph, renamed)
    for node in graph.node:
        node.name = f"{scope}/{node.name.removeprefix(before)}"
    graph.name = scope
    return copied


def rename_values(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename values of a graph without branches in place; names that are not mentioned stay."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in (*graph.value_info, *graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
