"""The tables of the sequential test in a graph, and what they make of the answers of a wave of members."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, numpy_helper

from s2ap_defend.sequential import NEAR_TIE, SequentialTest, tables_in_graph
from s2ap_export.graph.builder import GraphBuilder

__all__ = ["CLASS_AXIS", "Evidence", "Tables", "increments_of", "read_answers", "wave_tables"]

CLASS_AXIS = 2  # of [rows, members of the wave, classes]


@dataclass(frozen=True)
class Tables:
    """Names of the values that hold the tables of a wave of w members.

    Attributes:
        edges: float32 [w, bins - 1].
        increments: float64 [members * bins], those of all members of the test one after the other.
        lower: float64 [w].
        upper: float64 [w].
    """

    edges: str
    increments: str
    lower: str
    upper: str


@dataclass(frozen=True)
class Evidence:
    """What the answers of the w members of a wave say of n rows.

    Attributes:
        increments: float64 [n, w], evidence for 'adversarial'.
        changes: bool [n, w], where a member's label differs from the first answer.
    """

    increments: str
    changes: str


def wave_tables(build: GraphBuilder, test: SequentialTest) -> list[Tables]:
    """The tables as initialisers `test/edges` ..., and the part of each wave."""
    for name, table in tables_in_graph(test).items():  # under the names that readers look for, equal ones too
        build.initializers[f"test/{name}"] = numpy_helper.from_array(np.array(table, order="C"), f"test/{name}")
    increments = build.op("Reshape", "test/increments", build.integers(-1))
    split = ["test/edges", "test/lower", "test/upper"]
    if len(test.waves) == 1:
        parts: list[tuple[str, ...]] = [(table,) for table in split]
    else:
        sizes = build.integers(*test.waves)
        parts = [build.node("Split", [table, sizes], len(test.waves), {"axis": 0}) for table in split]
    return [Tables(edges, increments, lower, upper) for edges, lower, upper in zip(*parts, strict=True)]


def read_answers(
    build: GraphBuilder,
    test: SequentialTest,
    tables: Tables,
    first: int,
    log_probabilities: list[str],
    first_answer: str,
    classes: int,
) -> Evidence:
    """Evidence of a wave against the first answers; arguments as of `scan_wave`."""
    members = np.arange(first, first + len(log_probabilities), dtype=np.int64)
    axis, one = build.integers(CLASS_AXIS), build.integers(1)
    logs = build.op("Concat", *[build.op("Unsqueeze", name, one) for name in log_probabilities], axis=1)  # [n, w, K]
    answer = build.op("Reshape", first_answer, build.integers(-1, 1, 1))
    is_answer = build.op("Equal", answer, build.constant(np.arange(classes, dtype=np.int64)))  # [n, 1, K]
    of_answer = build.op("Where", is_answer, logs, build.constant(np.float32(-np.inf)))
    of_answer = build.op("ReduceMax", of_answer, axis, keepdims=1)  # [n, w, 1]
    margin = build.op("Sub", build.op("ReduceMax", logs, axis, keepdims=1), of_answer)
    score = margin if test.evidence == "margin" else build.op("Neg", of_answer)
    offsets = members * test.increments.shape[1]
    increments = increments_of(build, score, tables.edges, tables.increments, offsets)
    changes = build.op("GreaterOrEqual", margin, build.constant(np.float32(NEAR_TIE)))
    return Evidence(increments, build.op("Squeeze", changes, axis))


def increments_of(
    build: GraphBuilder, score: str, edges: str, increments: str, offsets: np.ndarray | None = None
) -> str:
    """Increments of the bins that scores [..., 1] fall into [...]; `offsets` say where each member's begin."""
    above = build.op("Cast", build.op("GreaterOrEqual", score, edges), to=TensorProto.INT64)
    bins = build.op("ReduceSum", above, build.integers(-1), keepdims=0)
    if offsets is not None and offsets.any():
        bins = build.op("Add", bins, build.constant(offsets))
    return build.op("Gather", increments, bins, axis=0)
