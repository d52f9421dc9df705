"""Stages in a graph, and their names: the prefix that all nodes, inner values and initialisers of a stage carry."""

from __future__ import annotations

from onnx import GraphProto, ModelProto

from s2ap_defend.model_file import all_graphs
from s2ap_defend.stages import reads, rename_values, value_names
from s2ap_export.graph.builder import BATCH, GraphBuilder

__all__ = ["MOST_IN_BRANCHES", "embed", "leave_out_unread", "move", "rename_scope", "run_again"]

MOST_IN_BRANCHES = 64 * 2**20
"""Bytes of weights that may lie in branches: engines rearrange them there, which is faster, and hold them 4 times."""


def rename_scope(stage: ModelProto, scope: str) -> ModelProto:
    """A copy of a stage with another scope; its graph carries the scope as its name.

    Inputs and outputs keep their plain names.
    """
    copied = ModelProto()
    copied.CopyFrom(stage)
    graph = copied.graph
    before = f"{graph.name}/"
    names = {name for inner in all_graphs(graph) for name in value_names(inner)}
    renamed = {name: f"{scope}/{name.removeprefix(before)}" for name in names if name.startswith(before)}
    rename_values(graph, renamed)
    for node in graph.node:
        node.name = f"{scope}/{node.name.removeprefix(before)}"
    graph.name = scope
    return copied


def run_again(stage: ModelProto, scope: str, *, most_in_branches: int = MOST_IN_BRANCHES) -> ModelProto:
    """A copy of a stage under another scope, for a branch; a larger one reads its weights from the graph around it."""
    if stage.ByteSize() <= most_in_branches:
        return rename_scope(stage, scope)
    weights = [tensor.name for tensor in stage.graph.initializer]
    again = rename_scope(stage, scope)
    renamed = {f"{scope}/{name.removeprefix(f'{stage.graph.name}/')}": name for name in weights}
    del again.graph.initializer[:]
    rename_values(again.graph, renamed)
    return again


def embed(graph: GraphProto, stage: ModelProto, image: str, *, rows: str = BATCH) -> None:
    """Add a stage to a graph, reading `image` of so many rows; its outputs become `scope/name`."""
    inner = GraphProto()
    inner.CopyFrom(stage.graph)
    scope = inner.name
    rename_values(inner, {"image": image} | {output.name: f"{scope}/{output.name}" for output in inner.output})
    for declared in inner.value_info:
        for dim in declared.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(BATCH, rows)
    graph.node.extend(inner.node)
    graph.initializer.extend(inner.initializer)
    graph.value_info.extend(inner.value_info)


def move(build: GraphBuilder, graph: GraphProto) -> None:
    """Move what a builder holds into a graph; the builder still knows it, and can go on."""
    graph.node.extend(build.nodes)
    graph.initializer.extend(build.initializers.values())
    build.nodes.clear()
    build.initializers.clear()


def leave_out_unread(graph: GraphProto) -> None:
    """Take away initialisers that no node reads, in place, branches included; engines warn of each when they load one.

    The tables of the test, which lie in its scope and in no inner one, stay: readers compare them with the manifest.
    """
    for one in all_graphs(graph):
        read = {name for node in one.node for name in reads(node)} | {output.name for output in one.output}
        for place in reversed(range(len(one.initializer))):
            name = one.initializer[place].name
            if name not in read and not _is_table(name):
                del one.initializer[place]


def _is_table(name: str) -> bool:
    return name.startswith("test/") and name.count("/") == 1
