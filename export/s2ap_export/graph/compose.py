"""Stages and the sequential test in one graph: the defended model.

Names that others rely on (docs/model-file.md):

    purifier/purified, purifier/reconstruction_error, classifier/log_probabilities, member_NNN/log_probabilities
        outputs of the stages. A stage is exactly the nodes named `scope/...`; it reads one value from outside.
    image, purifier/purified, test/wave_NNN/image
        what the purifier, the classifier and members of the first wave, and members of later waves read.
    test/edges, test/increments, test/lower, test/upper, test/base_vote_weights, test/base_vote_edges
        initialisers of the main graph; the last two where flagged inputs are corrected, edges where there are any.

The first wave asks every image and lies in the main graph. Each later wave is the branch of an `If` that is taken when
an image still needs it, undecided or in a vote that is not settled: its images are gathered, its members run, what they
say is scattered back. The weights of a member lie in its wave's branch, where engines rearrange them as they do
elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import SequentialTest
from s2ap_defend.stages import CLASSIFIER, PURIFIER, member_scope
from s2ap_export.graph.answers import Tables, wave_tables
from s2ap_export.graph.builder import BATCH, IR_VERSION, OPSET, PRODUCER, GraphBuilder
from s2ap_export.graph.scopes import rename_scope, rename_values
from s2ap_export.graph.waves import decide, initial_state, scan_wave, state_size, waiting_rows

__all__ = ["compose"]

PURIFIED = f"{PURIFIER}/purified"


def compose(
    purifier: ModelProto, classifier: ModelProto, members: Sequence[ModelProto], test: SequentialTest
) -> ModelProto:
    """The defended model: input `image`, outputs as in `s2ap_defend.types.Verdicts`, no manifest yet.

    Args:
        purifier: Stage `image` -> `purified`, `reconstruction_error`.
        classifier: Stage `image` -> `log_probabilities`.
        members: Stages `image` -> `log_probabilities` in the order in which they are asked; their scopes become
            `member_000`, `member_001`, ...
        test: The tables of the sequential test and its waves.

    Raises:
        RecipeError: If the stages do not fit together.
    """
    image_shape, classes = _check(purifier, classifier, members, test)
    graph = GraphProto(name="defended")
    _embed(graph, rename_scope(purifier, PURIFIER), "image")
    _embed(graph, rename_scope(classifier, CLASSIFIER), PURIFIED)

    build = GraphBuilder("test")
    tables = wave_tables(build, test)
    base_label = build.op("ArgMax", f"{CLASSIFIER}/log_probabilities", axis=1, keepdims=0)
    probabilities = build.op("Exp", f"{CLASSIFIER}/log_probabilities")
    state = initial_state(build, base_label, classes)
    _move(build, graph)

    first = 0
    for wave, size in enumerate(test.waves):
        stages = [rename_scope(stage, member_scope(first + i)) for i, stage in enumerate(members[first : first + size])]
        scan = _Wave(test, tables[wave], first, stages, classes)
        if wave == 0:
            state = scan.append(graph, f"test/{_wave_scope(wave)}", PURIFIED, base_label, state)
        else:
            state = _conditional(graph, scan, f"test/{_wave_scope(wave)}", image_shape, base_label, state)
        first += size

    build = GraphBuilder("test/decision")
    decision = decide(build, test, tables[0], state, base_label, classes)
    outputs: dict[str, tuple[str, int, list[int]]] = {
        "label": (decision.label, TensorProto.INT64, []),
        "adversarial": (decision.adversarial, TensorProto.BOOL, []),
        "base_label": (base_label, TensorProto.INT64, []),
        "probabilities": (probabilities, TensorProto.FLOAT, [classes]),
        "label_change_rate": (decision.label_change_rate, TensorProto.FLOAT, []),
        "log_likelihood_ratio": (decision.log_likelihood_ratio, TensorProto.DOUBLE, []),
        "members_used": (decision.members_used, TensorProto.INT64, []),
        "votes": (decision.votes, TensorProto.INT64, [classes]),
        "purified": (PURIFIED, TensorProto.FLOAT, list(image_shape)),
        "reconstruction_error": (f"{PURIFIER}/reconstruction_error", TensorProto.FLOAT, []),
        "abstained": (decision.abstained, TensorProto.BOOL, []),
    }
    _move(build, graph)
    for name, (value, element, row) in outputs.items():
        graph.node.append(helper.make_node("Identity", [value], [name], name=f"test/output/{name}"))
        graph.output.append(helper.make_tensor_value_info(name, element, [BATCH, *row]))
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, [BATCH, *image_shape]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = PRODUCER
    onnx.checker.check_model(model, full_check=True)
    return model


@dataclass(frozen=True)
class _Wave:
    """One wave of members and its scan, to be put into some graph."""

    test: SequentialTest
    tables: Tables
    first: int
    stages: Sequence[ModelProto]
    classes: int

    def append(
        self, graph: GraphProto, scope: str, image: str, base_label: str, state: str, *, rows: str = BATCH
    ) -> str:
        """Add the members and their scan to a graph; returns the state after it."""
        for stage in self.stages:
            _embed(graph, stage, image, rows=rows)
        answers = [f"{stage.graph.name}/log_probabilities" for stage in self.stages]
        build = GraphBuilder(scope)
        after = scan_wave(build, self.test, self.tables, self.first, answers, base_label, state, self.classes)
        _move(build, graph)
        return after


def _conditional(
    graph: GraphProto, scan: _Wave, scope: str, image_shape: tuple[int, ...], base_label: str, state: str
) -> str:
    """Add a wave that runs for the rows that still need its first member; returns the state after it."""
    build = GraphBuilder(f"{scope}/condition")
    active = waiting_rows(build, scan.test, scan.first, state)
    counts = build.op("Cast", active, to=TensorProto.INT32)
    highest = build.op("ReduceMax", counts, build.constant(np.array([0], dtype=np.int64)), keepdims=0)
    anyone = build.op("Cast", highest, to=TensorProto.BOOL)
    _move(build, graph)

    build = GraphBuilder(f"{scope}/rows")
    rows = build.op("NonZero", active)  # [1, n]
    rows = build.op("Reshape", rows, build.constant(np.array([-1], dtype=np.int64)))
    compact_label, compact = (build.op("Gather", value, rows, axis=0) for value in (base_label, state))
    image = f"{scope}/image"
    build.nodes.append(helper.make_node("Gather", [PURIFIED, rows], [image], name=image, axis=0))
    taken = GraphProto(name=f"{scope}/taken")
    _move(build, taken)
    count = f"{scope}/rows"  # the number of rows is a size of its own, not the batch
    taken.value_info.append(helper.make_tensor_value_info(image, TensorProto.FLOAT, [count, *image_shape]))
    after = scan.append(taken, scope, image, compact_label, compact, rows=count)
    build = GraphBuilder(f"{scope}/scatter")
    index = build.op("Unsqueeze", rows, build.constant(np.array([1], dtype=np.int64)))
    scattered = build.op("ScatterND", state, index, after)
    _move(build, taken)

    skipped = GraphProto(name=f"{scope}/skipped")
    unchanged = f"{scope}/unchanged"
    skipped.node.append(helper.make_node("Identity", [state], [unchanged], name=unchanged))
    columns = state_size(scan.classes)
    for branch, result in ((taken, scattered), (skipped, unchanged)):
        branch.output.append(helper.make_tensor_value_info(result, TensorProto.DOUBLE, [BATCH, columns]))
    result = f"{scope}/state"
    graph.node.append(
        helper.make_node("If", [anyone], [result], name=f"{scope}/if", then_branch=taken, else_branch=skipped)
    )
    return result


def _wave_scope(wave: int) -> str:
    return f"wave_{wave:03d}"


def _embed(graph: GraphProto, stage: ModelProto, image: str, *, rows: str = BATCH) -> None:
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


def _move(build: GraphBuilder, graph: GraphProto) -> None:
    """Add what a builder holds to a graph."""
    graph.node.extend(build.nodes)
    graph.initializer.extend(build.initializers.values())


def _check(
    purifier: ModelProto, classifier: ModelProto, members: Sequence[ModelProto], test: SequentialTest
) -> tuple[tuple[int, ...], int]:
    """The image shape (C, H, W) and the number of classes that all stages share."""
    if len(members) != test.members:
        raise RecipeError(f"the test has tables for {test.members} members, found {len(members)} members")
    image_shape = _sizes(purifier.graph.input[0])
    classes = _sizes(classifier.graph.output[0])
    for name, stage in [("classifier", classifier), *((member_scope(i), stage) for i, stage in enumerate(members))]:
        reads, answers = _sizes(stage.graph.input[0]), _sizes(stage.graph.output[0])
        if reads != image_shape or answers != classes:
            raise RecipeError(
                f"{name} reads images {reads} and answers {answers}; the purifier gives {image_shape}, the classifier "
                f"answers {classes}; trace them for one data set"
            )
    return image_shape, classes[0]


def _sizes(declared: ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in declared.type.tensor_type.shape.dim[1:])
