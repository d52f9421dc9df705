"""Branches of a graph that run for the rows that need them: later waves, and the purifier of suspicious images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper

from s2ap_defend.decision_record import Sees
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER
from s2ap_export.graph.builder import BATCH, GraphBuilder
from s2ap_export.graph.jury import exponential
from s2ap_export.graph.opening import Spoken, judge, scan_members
from s2ap_export.graph.sanitise import IMAGE
from s2ap_export.graph.scopes import embed, move, rename_scope, run_again
from s2ap_export.graph.waves import Wave, pack, state_size, unpack, waits

__all__ = ["Asked", "Images", "Open", "conditional_wave", "purify_suspicious"]

Images = dict[Sees, str]
"""The values that stages read, float32 [N, C, H, W]."""


@dataclass(frozen=True)
class Open:
    """Names of where the test of N images stands before a wave.

    Attributes:
        state: float64 [N, 1, 3 + S], packed.
        waits: bool, one: whether an image asks a member of the wave; empty behind the last wave.
    """

    state: str
    waits: str


@dataclass(frozen=True)
class Asked:
    """Names of what is known of N images of which some are purified.

    Attributes:
        image: float32 [N, C, H, W], purified or as it came.
        reconstruction_error: float32 [N], 0 where it is not purified.
        classifier: float32 [N, K], the classifier's log-probabilities on that.
        own: float64 [N, 1, K], its probabilities; empty where nothing needs them.
    """

    image: str
    reconstruction_error: str
    classifier: str
    own: str


@dataclass(frozen=True)
class _Output:
    """An output of a branch: the value where it is taken, the one where it is not, element type and sizes of a row."""

    taken: str
    skipped: str
    element: int
    row: Sequence[int] | None  # None: it is one number


def conditional_wave(
    graph: GraphProto,
    wave: Wave,
    scope: str,
    members: Sequence[tuple[ModelProto, Sees]],
    images: Images,
    image_shape: tuple[int, ...],
    before: Open,
    following: Wave | None,
) -> Open:
    """Add a wave that runs for the rows that a member of it asks; returns where the test stands after it.

    Args:
        graph: The main graph.
        wave: The wave.
        scope: Of its nodes.
        members: Its stages and what they see.
        images: What that is.
        image_shape: (C, H, W).
        before: Before the wave.
        following: The wave behind it; None: it is the last.
    """
    taken = GraphProto(name=f"{scope}/taken")
    build = GraphBuilder(f"{scope}/rows")
    verdict = build.op("Gather", before.state, build.constant(np.array([1], dtype=np.int64)), axis=-1)
    rows = _rows(build, build.op("Greater", verdict, build.constant(np.float64(wave.asks_above))))
    compact = build.op("Gather", before.state, rows, axis=0)
    seen = {eye: _gather_image(build, taken, images[eye], rows, f"{scope}/{eye}", image_shape) for _, eye in members}
    move(build, taken)
    for stage, eye in members:
        embed(taken, stage, seen[eye], rows=f"{scope}/rows")
    build = GraphBuilder(scope)
    after = scan_members(build, wave, unpack(build, wave.layout, compact))
    scattered = build.op("ScatterND", before.state, _places(build, rows), pack(build, after))
    outputs = {"state": _Output(scattered, before.state, TensorProto.DOUBLE, (1, state_size(wave.layout)))}
    skipped = GraphBuilder(f"{scope}/skipped")
    if following and following.asks_above >= wave.asks_above:  # who does not ask this wave does not ask that one
        outputs["waits"] = _Output(waits(build, following, after.verdict), _nobody(skipped), TensorProto.BOOL, None)
    elif following:
        waiting, idle = _waits_in(build, following, scattered), _waits_in(skipped, following, before.state)
        outputs["waits"] = _Output(waiting, idle, TensorProto.BOOL, None)
    move(build, taken)
    found = _branch(graph, scope, before.waits, taken, skipped, outputs)
    return Open(found["state"], found.get("waits", ""))


def purify_suspicious(
    graph: GraphProto,
    wave: Wave,
    purifier: ModelProto,
    classifier: ModelProto,
    spoken: Spoken,
    own: str,
    state: str,
    verdict: str,
    image_shape: tuple[int, ...],
    following: Wave | None,
) -> tuple[Asked, Open]:
    """Purify the images that the opening does not accept, ask the classifier again and begin their decision anew.

    Args:
        graph: The main graph.
        wave: The opening.
        purifier: The stage.
        classifier: The stage, whose first run is in the main graph.
        spoken: What the opening says.
        own: float64 [N, 1, K], probabilities of the classifier on images as they came; empty where nothing needs them.
        state: float64 [N, 1, 3 + S], packed, after the opening on images as they came.
        verdict: float64 [N, 1, 1], its verdicts.
        image_shape: (C, H, W).
        following: The wave behind the opening; None: there is none.
    """
    scope, said, layout = "test/suspicious", f"{CLASSIFIER}/log_probabilities", wave.layout
    build = GraphBuilder(f"{scope}/condition")
    suspicious = build.op("Cast", verdict, to=TensorProto.BOOL)  # all but clean
    anyone = build.op("ReduceMax", suspicious, keepdims=0)
    move(build, graph)

    taken = GraphProto(name=f"{scope}/taken")
    build = GraphBuilder(f"{scope}/rows")
    rows = _rows(build, suspicious)
    compact = _gather_image(build, taken, IMAGE, rows, f"{scope}/image", image_shape)
    kept = (spoken.logs, spoken.jury, spoken.verdict)
    logs, jury, unasked = (build.op("Gather", value, rows, axis=0) if value else "" for value in kept)
    move(build, taken)
    embed(taken, rename_scope(purifier, PURIFIER), compact, rows=f"{scope}/rows")
    again = run_again(rename_scope(classifier, CLASSIFIER), CLASSIFIER_AGAIN)
    embed(taken, again, f"{PURIFIER}/purified", rows=f"{scope}/rows")
    answered, error = f"{CLASSIFIER_AGAIN}/log_probabilities", f"{PURIFIER}/reconstruction_error"

    build, skipped = GraphBuilder(scope), GraphBuilder(f"{scope}/skipped")
    chances = ""
    if own:
        exact = build.op("Cast", answered, to=TensorProto.DOUBLE)
        chances = exponential(build, build.op("Unsqueeze", exact, build.constant(np.array([1], dtype=np.int64))))
    after = judge(build, wave, Spoken(logs, jury, unasked), answered, chances, error)
    places = _places(build, rows)
    nothing, none = (_no_error(part, suspicious) for part in (build, skipped))
    parts = {
        "purified": (IMAGE, f"{PURIFIER}/purified", TensorProto.FLOAT, image_shape),
        "log_probabilities": (said, answered, TensorProto.FLOAT, (layout.classes,)),
        "state": (state, pack(build, after), TensorProto.DOUBLE, (1, state_size(layout))),
    } | ({"probabilities": (own, chances, TensorProto.DOUBLE, (1, layout.classes))} if own else {})
    outputs = {
        name: _Output(build.op("ScatterND", before, places, new), before, element, row)
        for name, (before, new, element, row) in parts.items()
    }
    outputs["reconstruction_error"] = _Output(
        build.op("ScatterND", nothing, places, error), none, TensorProto.FLOAT, ()
    )
    if following:
        waiting = waits(build, following, after.verdict)
        outputs["waits"] = _Output(waiting, _nobody(skipped), TensorProto.BOOL, None)
    move(build, taken)
    found = _branch(graph, scope, anyone, taken, skipped, outputs)
    asked = Asked(
        found["purified"], found["reconstruction_error"], found["log_probabilities"], found.get("probabilities", "")
    )
    return asked, Open(found["state"], found.get("waits", ""))


def _waits_in(build: GraphBuilder, wave: Wave, state: str) -> str:
    """Whether any row asks a member of a wave, by packed states."""
    return waits(build, wave, build.op("Gather", state, build.constant(np.array([1], dtype=np.int64)), axis=-1))


def _nobody(build: GraphBuilder) -> str:
    return build.op("Not", build.constant(np.bool_(True)))


def _no_error(build: GraphBuilder, flags: str) -> str:
    """Zeros float32 [n], one for each flag [n, 1, 1]."""
    flat = build.op("Reshape", flags, build.constant(np.array([-1], dtype=np.int64)))
    return build.op("Cast", build.op("And", flat, build.constant(np.bool_(False))), to=TensorProto.FLOAT)


def _rows(build: GraphBuilder, flags: str) -> str:
    """Indices of rows whose flag [n, 1, 1] is set [m]."""
    return build.op("Gather", build.op("NonZero", flags), build.constant(np.int64(0)), axis=0)


def _places(build: GraphBuilder, rows: str) -> str:
    """Indices of rows [m] as those of ScatterND [m, 1]."""
    return build.op("Unsqueeze", rows, build.constant(np.array([1], dtype=np.int64)))


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
    skipped: GraphBuilder,
    outputs: Mapping[str, _Output],
) -> dict[str, str]:
    """Add an If; returns the names of its outputs.

    Args:
        graph: The main graph.
        scope: Of the node and its outputs.
        condition: bool, one.
        taken: The branch.
        skipped: Nodes of the other one. Values of the main graph that it gives are copied.
        outputs: By name.
    """
    made = {name for node in skipped.nodes for name in node.output}
    otherwise = GraphProto(name=f"{scope}/skipped")
    for name, output in outputs.items():
        kept = output.skipped
        if kept not in made:
            kept = f"{scope}/unchanged_{name}"
            otherwise.node.append(helper.make_node("Identity", [output.skipped], [kept], name=kept))
        shape: list[str | int | None] = [] if output.row is None else [BATCH, *output.row]
        for branch, result in ((taken, output.taken), (otherwise, kept)):
            branch.output.append(helper.make_tensor_value_info(result, output.element, shape))
    move(skipped, otherwise)
    results = {name: f"{scope}/{name}" for name in outputs}
    names = [*results.values()]
    graph.node.append(
        helper.make_node("If", [condition], names, name=f"{scope}/if", then_branch=taken, else_branch=otherwise)
    )
    return results
