"""Branches of a graph that run for the rows that need them: later waves, and the purifier of suspicious images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper

from s2ap_defend.decision_record import Sees
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER
from s2ap_export.graph.builder import BATCH, GraphBuilder
from s2ap_export.graph.opening import scan_members
from s2ap_export.graph.scopes import embed, move, rename_scope, run_again
from s2ap_export.graph.waves import State, Wave, pack, state_size, unpack, waiting_rows

__all__ = ["Images", "Purified", "conditional_wave", "purify_suspicious"]

Images = dict[Sees, str]
"""The values that stages read, float32 [N, C, H, W]."""


@dataclass(frozen=True)
class Purified:
    """Names of what is known of N images of which some are purified.

    Attributes:
        image: float32 [N, C, H, W], purified or as it came.
        classifier: float32 [N, K], the classifier's log-probabilities on that.
        reconstruction_error: float32 [N], 0 where it is not purified.
    """

    image: str
    classifier: str
    reconstruction_error: str


def conditional_wave(
    graph: GraphProto,
    wave: Wave,
    scope: str,
    members: Sequence[tuple[ModelProto, Sees]],
    images: Images,
    image_shape: tuple[int, ...],
    answer: str,
    state: State,
) -> State:
    """Add a wave that runs for the rows that a member of it asks; returns the state after it.

    Args:
        graph: The main graph.
        wave: The wave.
        scope: Of its nodes.
        members: Its stages and what they see.
        images: What that is.
        image_shape: (C, H, W).
        answer: bool [N, 1, K], the first answer.
        state: Before the wave.
    """
    build = GraphBuilder(f"{scope}/condition")
    packed = pack(build, state)
    waiting = waiting_rows(build, wave, state)
    anyone = _anyone(build, waiting)
    move(build, graph)

    taken = GraphProto(name=f"{scope}/taken")
    build = GraphBuilder(f"{scope}/rows")
    rows = _rows(build, waiting)
    compact_answer, compact = (build.op("Gather", value, rows, axis=0) for value in (answer, packed))
    seen = {eye: _gather_image(build, taken, images[eye], rows, f"{scope}/{eye}", image_shape) for _, eye in members}
    move(build, taken)
    for stage, eye in members:
        embed(taken, stage, seen[eye], rows=f"{scope}/rows")
    build = GraphBuilder(scope)
    after = scan_members(build, wave, compact_answer, unpack(build, wave.test, wave.layout, compact))
    index = build.op("Unsqueeze", rows, build.constant(np.array([1], dtype=np.int64)))
    scattered = build.op("ScatterND", packed, index, pack(build, after))
    move(build, taken)

    columns = state_size(wave.test, wave.layout)
    (result,) = _branch(graph, scope, anyone, taken, {"state": (scattered, packed, TensorProto.DOUBLE, (columns,))})
    build = GraphBuilder(f"{scope}/after")
    state = unpack(build, wave.test, wave.layout, result)
    move(build, graph)
    return state


def purify_suspicious(
    build: GraphBuilder,
    graph: GraphProto,
    purifier: ModelProto,
    classifier: ModelProto,
    state: State,
    said: str,
    image_shape: tuple[int, ...],
    classes: int,
) -> Purified:
    """Purify the images that the opening does not accept, and ask the classifier again about them.

    Args:
        build: Nodes of the main graph; they are moved into it.
        graph: The main graph.
        purifier: The stage.
        classifier: The stage, whose first run is in the main graph.
        state: After the opening on images as they came.
        said: float32 [N, K], the classifier's log-probabilities there.
        image_shape: (C, H, W).
        classes: K.
    """
    scope, image = "test/suspicious", "test/image"
    suspicious = build.op("Or", build.op("Not", state.decided), state.adversarial)
    anyone = _anyone(build, suspicious)
    flat = build.op("Reshape", suspicious, build.constant(np.array([-1], dtype=np.int64)))
    zero = build.constant(np.zeros(1, dtype=np.float32))
    none = build.op("Where", flat, zero, zero)
    move(build, graph)

    taken = GraphProto(name=f"{scope}/taken")
    inner = GraphBuilder(f"{scope}/rows")
    rows = _rows(inner, suspicious)
    compact = _gather_image(inner, taken, image, rows, f"{scope}/image", image_shape)
    move(inner, taken)
    embed(taken, rename_scope(purifier, PURIFIER), compact, rows=f"{scope}/rows")
    again = run_again(rename_scope(classifier, CLASSIFIER), CLASSIFIER_AGAIN)
    embed(taken, again, f"{PURIFIER}/purified", rows=f"{scope}/rows")
    inner = GraphBuilder(f"{scope}/scatter")
    index = inner.op("Unsqueeze", rows, inner.constant(np.array([1], dtype=np.int64)))
    parts = {
        "purified": (image, f"{PURIFIER}/purified", image_shape),
        "log_probabilities": (said, f"{CLASSIFIER_AGAIN}/log_probabilities", (classes,)),
        "reconstruction_error": (none, f"{PURIFIER}/reconstruction_error", ()),
    }
    outputs = {
        name: (inner.op("ScatterND", before, index, after), before, TensorProto.FLOAT, row)
        for name, (before, after, row) in parts.items()
    }
    move(inner, taken)
    return Purified(*_branch(graph, scope, anyone, taken, outputs))


def _anyone(build: GraphBuilder, flags: str) -> str:
    """Whether a row's flag [n, 1] is set."""
    return build.op("ReduceMax", flags, keepdims=0)


def _rows(build: GraphBuilder, flags: str) -> str:
    """Indices of rows whose flag [n, 1] is set [m]."""
    return build.op("Gather", build.op("NonZero", flags), build.constant(np.int64(0)), axis=0)


def _gather_image(
    build: GraphBuilder, graph: GraphProto, image: str, rows: str, name: str, shape: tuple[int, ...]
) -> str:
    """Rows of an image; their number is a size of its own, not the batch."""
    if not any(node.name == name for node in build.nodes):
        build.nodes.append(helper.make_node("Gather", [image, rows], [name], name=name, axis=0))
        count = f"{name.rpartition('/')[0]}/rows"
        graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [count, *shape]))
    return name


def _branch(
    graph: GraphProto,
    scope: str,
    condition: str,
    taken: GraphProto,
    outputs: Mapping[str, tuple[str, str, int, tuple[int, ...]]],
) -> list[str]:
    """Add an If whose outputs keep their values where it is not taken; returns their names.

    Args:
        graph: The main graph.
        scope: Of the node and its outputs.
        condition: bool, one.
        taken: The branch.
        outputs: By name: the value in the branch, the one otherwise, element type and sizes of a row.
    """
    skipped = GraphProto(name=f"{scope}/skipped")
    for name, (after, before, element, row) in outputs.items():
        kept = f"{scope}/unchanged_{name}"
        skipped.node.append(helper.make_node("Identity", [before], [kept], name=kept))
        for branch, result in ((taken, after), (skipped, kept)):
            branch.output.append(helper.make_tensor_value_info(result, element, [BATCH, *row]))
    results = [f"{scope}/{name}" for name in outputs]
    graph.node.append(
        helper.make_node("If", [condition], results, name=f"{scope}/if", then_branch=taken, else_branch=skipped)
    )
    return results
