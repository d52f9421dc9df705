"""The sequential test as graph: one wave of members, and the decision at the end.

`s2ap_defend.sequential.run_sequential_test` is the reference; these nodes equal it exactly. It loops over members; here
a wave is computed at once. Prefix sums of the increments, from the log-likelihood ratio before the wave, are the ratios
after every member: CumSum adds in the order of the loop, so they agree to the last bit. A member counts as long as no
boundary was crossed before it. What a row carries from wave to wave is one row of float64 numbers:

    ratio | decided (0 or 1) | adversarial (0 or 1) | votes of each class | summed log-probabilities of each class
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from s2ap_defend.sequential import NEAR_TIE, SequentialTest
from s2ap_export.graph_builder import GraphBuilder

__all__ = ["Decision", "Tables", "decide", "initial_state", "scan_wave", "state_size", "wave_tables"]

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
class Decision:
    """Names of the values that hold the outcome, as in Verdicts."""

    label: str
    adversarial: str
    label_change_rate: str
    log_likelihood_ratio: str
    members_used: str
    votes: str


def state_size(classes: int) -> int:
    """Numbers that a row carries from wave to wave."""
    return 3 + 2 * classes


def initial_state(build: GraphBuilder, base_label: str, classes: int) -> str:
    """The state [N, S] before the first member: all zero."""
    rows = build.op("Shape", base_label)
    columns = build.constant(np.array([state_size(classes)], dtype=np.int64))
    shape = build.op("Concat", rows, columns, axis=0)
    return build.op("Expand", build.constant(np.zeros((1, 1))), shape)


def wave_tables(build: GraphBuilder, test: SequentialTest) -> list[Tables]:
    """The tables as initialisers `test/edges` ..., and the part of each wave."""
    edges, lower, upper = (build.constant(getattr(test, name), name) for name in ("edges", "lower", "upper"))
    increments = build.constant(test.increments, "increments")
    increments = build.op("Reshape", increments, build.constant(np.array([-1], dtype=np.int64)))
    sizes = build.constant(np.array(test.waves, dtype=np.int64))
    if len(test.waves) == 1:
        return [Tables(edges, increments, lower, upper)]
    parts = [build.node("Split", [table, sizes], len(test.waves), {"axis": 0}) for table in (edges, lower, upper)]
    return [Tables(e, increments, low, up) for e, low, up in zip(*parts, strict=True)]


def scan_wave(
    build: GraphBuilder,
    test: SequentialTest,
    tables: Tables,
    first: int,
    log_probabilities: list[str],
    base_label: str,
    state: str,
    classes: int,
) -> str:
    """The state after a wave.

    Args:
        build: The graph that the wave is in.
        test: Its evidence and votes; its tables are read from the graph.
        tables: Where the tables are.
        first: Index of the wave's first member.
        log_probabilities: Of each member of the wave, float32 [n, K].
        base_label: int64 [n].
        state: float64 [n, S] before the wave; every row is one that the first member asks.
        classes: Number of classes K.
    """
    size = len(log_probabilities)
    bins = test.increments.shape[1]
    axis = build.constant(np.array([CLASS_AXIS], dtype=np.int64))
    one = build.constant(np.array([1], dtype=np.int64))
    labels = build.constant(np.arange(classes, dtype=np.int64))
    logs = build.op("Concat", *[build.op("Unsqueeze", name, one) for name in log_probabilities], axis=1)  # [n, w, K]

    base = build.op("Reshape", base_label, build.constant(np.array([-1, 1, 1], dtype=np.int64)))
    lowest = build.constant(np.float32(-np.inf))
    of_base = build.op("Where", build.op("Equal", base, labels), logs, lowest)
    of_base = build.op("ReduceMax", of_base, axis, keepdims=1)  # [n, w, 1]
    margin = build.op("Sub", build.op("ReduceMax", logs, axis, keepdims=1), of_base)
    score = margin if test.evidence == "margin" else build.op("Neg", of_base)
    agrees = build.op("Less", margin, build.constant(np.float32(NEAR_TIE)))
    vote = build.op("Where", agrees, base, build.op("ArgMax", logs, axis=CLASS_AXIS, keepdims=1))
    voted = build.op("Equal", vote, labels)  # [n, w, K]

    above = build.op("GreaterOrEqual", score, tables.edges)  # [n, w, bins - 1]
    bin_ = build.op("ReduceSum", build.op("Cast", above, to=TensorProto.INT64), axis, keepdims=0)
    offsets = build.constant(np.arange(first, first + size, dtype=np.int64) * bins)
    increments = build.op("Gather", tables.increments, build.op("Add", bin_, offsets), axis=0)  # [n, w]

    parts = build.constant(np.array([1, 1, 1, classes, classes], dtype=np.int64))
    ratio, decided, adversarial, votes, summed = build.node("Split", [state, parts], 5, {"axis": 1})
    decided, adversarial = (build.op("Cast", flag, to=TensorProto.BOOL) for flag in (decided, adversarial))
    track = build.op("CumSum", build.op("Concat", ratio, increments, axis=1), build.constant(np.int64(1)))  # [n, w + 1]
    after = build.op("Slice", track, one, build.constant(np.array([size + 1], dtype=np.int64)), one)  # [n, w]
    upper = build.op("GreaterOrEqual", after, tables.upper)
    stops = build.op("Or", upper, build.op("LessOrEqual", after, tables.lower))
    stopped = build.op(
        "CumSum", build.op("Cast", stops, to=TensorProto.INT64), build.constant(np.int64(1)), exclusive=1
    )
    open_ = build.op("Equal", stopped, build.constant(np.int64(0)))
    open_ = build.op("And", open_, build.op("Not", decided))  # [n, w]: still undecided when this member is asked

    steps = build.op("ReduceSum", build.op("Cast", open_, to=TensorProto.INT64), one, keepdims=1)
    ratio = build.op("GatherElements", track, steps, axis=1)
    adversarial = build.op("Or", adversarial, _any(build, build.op("And", open_, upper)))
    decided = build.op("Or", decided, _any(build, build.op("And", open_, stops)))
    votes_on = build.constant(np.arange(first, first + size) < test.vote_members)
    asked = build.op("Or", open_, build.op("And", adversarial, votes_on))
    asked = build.op("Unsqueeze", asked, axis)  # [n, w, 1]

    counted = build.op("Cast", build.op("And", asked, voted), to=TensorProto.DOUBLE)
    votes = build.op("Add", votes, build.op("ReduceSum", counted, one, keepdims=0))
    added = build.op("Where", asked, build.op("Cast", logs, to=TensorProto.DOUBLE), build.constant(np.float64(0)))
    sums = build.op("Concat", build.op("Unsqueeze", summed, one), added, axis=1)
    sums = build.op("CumSum", sums, build.constant(np.int64(1)))  # in the order of the loop, which a sum need not keep
    summed = build.op("Gather", sums, build.constant(np.int64(size)), axis=1)
    flags = [build.op("Cast", flag, to=TensorProto.DOUBLE) for flag in (decided, adversarial)]
    return build.op("Concat", ratio, *flags, votes, summed, axis=1)


def decide(build: GraphBuilder, test: SequentialTest, state: str, base_label: str, classes: int) -> Decision:
    """The final rule and the correction vote, from the state [N, S] after the last wave."""
    one = build.constant(np.array([1], dtype=np.int64))
    flat = build.constant(np.array([-1], dtype=np.int64))
    parts = build.constant(np.array([1, 1, 1, classes, classes], dtype=np.int64))
    ratio, decided, adversarial, votes, summed = build.node("Split", [state, parts], 5, {"axis": 1})
    ratio, decided, adversarial = (build.op("Reshape", column, flat) for column in (ratio, decided, adversarial))
    decided, adversarial = (build.op("Cast", flag, to=TensorProto.BOOL) for flag in (decided, adversarial))
    above = build.op("Greater", ratio, build.constant(np.float64(test.final_threshold), "final_threshold"))
    adversarial = build.op("Or", adversarial, build.op("And", build.op("Not", decided), above))

    column = build.op("Unsqueeze", base_label, one)
    is_base = build.op("Equal", column, build.constant(np.arange(classes, dtype=np.int64)))  # [N, K]
    weight = build.constant(np.float64(test.base_vote_weight), "base_vote_weight")
    weighted = build.op("Where", is_base, build.op("Mul", votes, weight), votes)
    tied = build.op("Equal", weighted, build.op("ReduceMax", weighted, one, keepdims=1))
    best = build.op("Where", tied, summed, build.constant(np.float64(-np.inf)))
    corrected = build.op("ArgMax", best, axis=1, keepdims=0)

    used = build.op("ReduceSum", votes, one, keepdims=0)
    of_base = build.op("Reshape", build.op("GatherElements", votes, column, axis=1), flat)
    changed = build.op("Div", build.op("Sub", used, of_base), used)
    return Decision(
        label=build.op("Where", adversarial, corrected, base_label),
        adversarial=adversarial,
        label_change_rate=build.op("Cast", changed, to=TensorProto.FLOAT),
        log_likelihood_ratio=ratio,
        members_used=build.op("Cast", used, to=TensorProto.INT64),
        votes=build.op("Cast", votes, to=TensorProto.INT64),
    )


def _any(build: GraphBuilder, flags: str) -> str:
    """Whether any member's flag [n, w] is set [n, 1]."""
    counts = build.op("Cast", flags, to=TensorProto.INT64)
    highest = build.op("ReduceMax", counts, build.constant(np.array([1], dtype=np.int64)), keepdims=1)
    return build.op("Cast", highest, to=TensorProto.BOOL)
