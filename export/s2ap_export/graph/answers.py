"""The tables of the sequential test in a graph, and the evidence of signals and of a wave of members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, numpy_helper

from s2ap_defend.sequential import NEAR_TIE, SequentialTest, tables_in_graph
from s2ap_export.graph.builder import GraphBuilder

__all__ = ["Evidence", "Tables", "add_tables", "read_evidence", "read_signals", "wave_tables"]


@dataclass(frozen=True)
class Tables:
    """Names of the values that hold the tables of a wave of w members; engines compute them once, when they load.

    Attributes:
        edges: float32 [w, bins - 1]; negative where the evidence is the log-probability itself.
        increments: float64 [members * bins], those of all members of the test one after the other.
        lower: float64 [w + 1, 1], before the wave, where nothing stops, and after each member.
        upper: float64 [w + 1, 1], likewise.
        vote_weights: float64 [w, 1].
    """

    edges: str
    increments: str
    lower: str
    upper: str
    vote_weights: str


@dataclass(frozen=True)
class Evidence:
    """What the w members of a wave say of the first answers of n rows.

    Attributes:
        increments: float64 [n, w, 1].
        changes: bool [n, w, 1], whether the member says another label.
    """

    increments: str
    changes: str


def add_tables(build: GraphBuilder, test: SequentialTest) -> None:
    """Add the tables as initialisers `test/edges` ..., the names that readers look for."""
    for name, array in tables_in_graph(test).items():
        build.initializers[f"test/{name}"] = numpy_helper.from_array(np.array(array, order="C"), f"test/{name}")


def wave_tables(build: GraphBuilder, test: SequentialTest, waves: Sequence[int]) -> list[Tables]:
    """The part of the tables of each wave."""
    edges = build.op("Neg", "test/edges") if test.evidence == "surprise" else "test/edges"
    increments = build.op("Reshape", "test/increments", build.constant(np.array([-1], dtype=np.int64)))
    column = build.constant(np.array([1], dtype=np.int64))
    whole = [edges, *(build.op("Unsqueeze", f"test/{name}", column) for name in ("lower", "upper", "vote_weights"))]
    sizes = build.constant(np.array(waves, dtype=np.int64))
    parts = [
        build.node("Split", [table, sizes], len(waves), {"axis": 0}) if len(waves) > 1 else (table,) for table in whole
    ]
    low, high = (build.constant(np.array([[end]])) for end in (-np.inf, np.inf))
    return [
        Tables(
            edges,
            increments,
            lower=build.op("Concat", low, lower, axis=0),
            upper=build.op("Concat", high, upper, axis=0),
            vote_weights=vote_weights,
        )
        for edges, lower, upper, vote_weights in zip(*parts, strict=True)
    ]


def read_evidence(
    build: GraphBuilder, test: SequentialTest, tables: Tables, first: int, size: int, logs: str, answer: str
) -> Evidence:
    """The evidence of a wave.

    Args:
        build: The graph that the wave is in.
        test: Its kind of evidence; its tables are read from the graph.
        tables: Where the wave's tables are.
        first: Index of its first member.
        size: Its members w.
        logs: float32 [n, w, K].
        answer: bool [n, 1, K], the first answer.
    """
    last = build.constant(np.array([-1], dtype=np.int64))
    of_answer = build.op("Where", answer, logs, build.constant(np.float32(-np.inf)))
    of_answer = build.op("ReduceMax", of_answer, last, keepdims=1)  # [n, w, 1]
    margin = build.op("Sub", build.op("ReduceMax", logs, last, keepdims=1), of_answer)
    if test.evidence == "margin":
        above = build.op("GreaterOrEqual", margin, tables.edges)
    else:
        above = build.op("LessOrEqual", of_answer, tables.edges)
    offsets = build.constant(np.arange(first, first + size, dtype=np.int64)[:, None] * test.increments.shape[1])
    bins = build.op("ReduceSum", build.op("Cast", above, to=TensorProto.INT64), last, keepdims=1)
    return Evidence(
        build.op("Gather", tables.increments, build.op("Add", bins, offsets), axis=0),
        build.op("GreaterOrEqual", margin, build.constant(np.float32(NEAR_TIE))),
    )


def read_signals(
    build: GraphBuilder, test: SequentialTest, classifier: str, mean: str, answer: str, reconstruction_error: str
) -> str:
    """The log-likelihood ratio [n, 1, 1] of the signals alone; empty where there is none.

    Args:
        build: The graph.
        test: Its signals; their tables are read from the graph.
        classifier: float32 [n, 1, K], log-probabilities.
        mean: float64 [n, 1, K], the mean log-probabilities of the opening's jurors.
        answer: bool [n, 1, K], the first answer.
        reconstruction_error: float32 [n].
    """
    last = build.constant(np.array([-1], dtype=np.int64))
    ratio = ""
    for i, signal in enumerate(test.signals):
        match signal.name:
            case "jury margin":
                nothing = build.constant(np.float64(-np.inf))
                of_answer = build.op("ReduceMax", build.op("Where", answer, mean, nothing), last, keepdims=1)
                best_other = build.op("ReduceMax", build.op("Where", answer, nothing, mean), last, keepdims=1)
                score = build.op("Cast", build.op("Sub", best_other, of_answer), to=TensorProto.FLOAT)
            case "classifier surprise":
                of_answer = build.op("Where", answer, classifier, build.constant(np.float32(-np.inf)))
                score = build.op("Neg", build.op("ReduceMax", of_answer, last, keepdims=1))
            case _:
                score = build.op("Reshape", reconstruction_error, build.constant(np.array([-1, 1, 1], dtype=np.int64)))
        above = build.op("GreaterOrEqual", score, f"test/signal_{i}_edges")  # [n, 1, bins - 1]
        place = build.op("ReduceSum", build.op("Cast", above, to=TensorProto.INT64), last, keepdims=1)
        added = build.op("Gather", f"test/signal_{i}_increments", place, axis=0)
        ratio = build.op("Add", ratio, added) if ratio else added
    return ratio
