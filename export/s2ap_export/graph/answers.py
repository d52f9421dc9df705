"""The tables of the sequential test in a graph, and what they make of the answers of a wave of members."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, numpy_helper

from s2ap_defend.sequential import NEAR_TIE, SequentialTest
from s2ap_export.graph.builder import GraphBuilder

__all__ = ["CLASS_AXIS", "Answers", "Tables", "read_answers", "wave_tables"]

CLASS_AXIS = 2  # of [rows, members of the wave, classes]


@dataclass(frozen=True)
class Tables:
    """Names of the values that hold the tables of a wave of w members.

    Attributes:
        edges: float32 [w, bins - 1].
        increments: float64 [members * bins], those of all members of the test one after the other.
        lower: float64 [w].
        upper: float64 [w].
        base_vote_weights: float64 [weights], of all members; empty where flagged inputs are rejected.
        base_vote_edges: float64 [weights - 1], of all members; empty where there is one weight.
    """

    edges: str
    increments: str
    lower: str
    upper: str
    base_vote_weights: str = ""
    base_vote_edges: str = ""


@dataclass(frozen=True)
class Answers:
    """What the w members of a wave say of n rows.

    Attributes:
        log_probabilities: float32 [n, w, K].
        is_base: bool [n, 1, K], the base label.
        voted: bool [n, w, K], the label that the member votes for.
        increments: float64 [n, w], its evidence.
    """

    log_probabilities: str
    is_base: str
    voted: str
    increments: str


def wave_tables(build: GraphBuilder, test: SequentialTest) -> list[Tables]:
    """The tables as initialisers `test/edges` ..., and the part of each wave."""
    edges, lower, upper = (_table(build, test, name) for name in ("edges", "lower", "upper"))
    increments = _table(build, test, "increments")
    increments = build.op("Reshape", increments, build.constant(np.array([-1], dtype=np.int64)))
    weights = _table(build, test, "base_vote_weights") if test.correct else ""
    weight_edges = _table(build, test, "base_vote_edges") if test.correct and len(test.base_vote_edges) else ""
    if len(test.waves) == 1:
        return [Tables(edges, increments, lower, upper, weights, weight_edges)]
    sizes = build.constant(np.array(test.waves, dtype=np.int64))
    parts = [build.node("Split", [table, sizes], len(test.waves), {"axis": 0}) for table in (edges, lower, upper)]
    return [Tables(e, increments, low, up, weights, weight_edges) for e, low, up in zip(*parts, strict=True)]


def read_answers(
    build: GraphBuilder,
    test: SequentialTest,
    tables: Tables,
    first: int,
    log_probabilities: list[str],
    base_label: str,
    classes: int,
) -> Answers:
    """Votes and evidence of a wave; arguments as of `scan_wave`."""
    size = len(log_probabilities)
    axis = build.constant(np.array([CLASS_AXIS], dtype=np.int64))
    one = build.constant(np.array([1], dtype=np.int64))
    labels = build.constant(np.arange(classes, dtype=np.int64))
    logs = build.op("Concat", *[build.op("Unsqueeze", name, one) for name in log_probabilities], axis=1)  # [n, w, K]

    base = build.op("Reshape", base_label, build.constant(np.array([-1, 1, 1], dtype=np.int64)))
    is_base = build.op("Equal", base, labels)  # [n, 1, K]
    of_base = build.op("Where", is_base, logs, build.constant(np.float32(-np.inf)))
    of_base = build.op("ReduceMax", of_base, axis, keepdims=1)  # [n, w, 1]
    margin = build.op("Sub", build.op("ReduceMax", logs, axis, keepdims=1), of_base)
    score = margin if test.evidence == "margin" else build.op("Neg", of_base)
    agrees = build.op("Less", margin, build.constant(np.float32(NEAR_TIE)))
    vote = build.op("Where", agrees, base, build.op("ArgMax", logs, axis=CLASS_AXIS, keepdims=1))
    voted = build.op("Equal", vote, labels)  # [n, w, K]

    above = build.op("GreaterOrEqual", score, tables.edges)  # [n, w, bins - 1]
    bin_ = build.op("ReduceSum", build.op("Cast", above, to=TensorProto.INT64), axis, keepdims=0)
    bins = test.increments.shape[1]
    offsets = build.constant(np.arange(first, first + size, dtype=np.int64) * bins)
    increments = build.op("Gather", tables.increments, build.op("Add", bin_, offsets), axis=0)  # [n, w]
    return Answers(logs, is_base, voted, increments)


def _table(build: GraphBuilder, test: SequentialTest, name: str) -> str:
    """An initialiser under the name that readers look for, also where another table holds the same numbers."""
    full = f"{build.scope}/{name}"
    build.initializers[full] = numpy_helper.from_array(np.ascontiguousarray(getattr(test, name)), full)
    return full
