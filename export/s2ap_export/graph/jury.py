"""Labels of a jury in a graph; `s2ap_defend.sequential.jury` is the reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from typing import Literal

import numpy as np
from onnx import TensorProto

from s2ap_defend.sequential import SequentialTest
from s2ap_defend.sequential.jury import LOWEST_LOG, SQUARINGS, TAYLOR
from s2ap_defend.types import Bool, Float64
from s2ap_export.graph.builder import GraphBuilder

__all__ = ["CLASS_AXIS", "Ballots", "JuryLayout", "mixed_label", "read_ballots", "settled", "voted_label"]

CLASS_AXIS = 2  # of [rows, members of the wave, classes]
Part = Literal["votes", "summed", "probabilities"]


@dataclass(frozen=True)
class JuryLayout:
    """The numbers of the jury that a row carries: one block of K columns each.

    Attributes:
        parts: The blocks: weight of votes, weighted sums of log-probabilities and of probabilities.
        classes: K.
    """

    parts: tuple[Part, ...]
    classes: int

    @classmethod
    def of(cls, test: SequentialTest, classes: int) -> JuryLayout:
        """What the answer and the vote of a test need; nothing where nobody votes."""
        if not test.vote_weights.any():
            return cls((), classes)
        votes = test.answer == "robust" or test.correct
        summed = votes or any(signal.name == "jury margin" for signal in test.signals)
        parts: dict[Part, bool] = {"votes": True, "summed": summed, "probabilities": test.answer == "mixed"}
        return cls(tuple(name for name, needed in parts.items() if needed), classes)

    @property
    def columns(self) -> int:
        """Numbers of a row."""
        return len(self.parts) * self.classes

    def split(self, build: GraphBuilder, jury: str) -> dict[str, str]:
        """The blocks by name."""
        if len(self.parts) < 2:
            return dict.fromkeys(self.parts, jury)
        sizes = build.constant(np.full(len(self.parts), self.classes, dtype=np.int64))
        return dict(zip(self.parts, build.node("Split", [jury, sizes], len(self.parts), {"axis": 1}), strict=True))


@dataclass(frozen=True)
class Ballots:
    """What w members add to the jury of n rows.

    Attributes:
        votes: float64 [n, w, K], their weighted votes.
        rows: float64 [n, w, J], all blocks of the layout.
    """

    votes: str
    rows: str


def read_ballots(build: GraphBuilder, layout: JuryLayout, weights: str, logs: str, voting: Bool) -> Ballots:
    """The ballots of members.

    Args:
        build: The graph that they are in.
        layout: What the jury keeps.
        weights: float64 [w], of their votes.
        logs: float32 [n, w, K].
        voting: Who votes [w]; others add nothing, whatever they say.
    """
    nothing = build.constant(np.float64(0))
    weights = build.op("Unsqueeze", weights, build.constant(np.array([1], dtype=np.int64)))  # [w, 1]
    if not voting.all():
        weights = build.op("Where", build.constant(voting[:, None]), weights, nothing)
        logs = build.op("Where", build.constant(voting[:, None]), logs, build.constant(np.float32(0)))
    best = build.op("ArgMax", logs, axis=CLASS_AXIS, keepdims=1)
    voted = build.op("Equal", best, build.constant(np.arange(layout.classes, dtype=np.int64)))
    votes = build.op("Where", voted, weights, nothing)
    blocks = [votes]
    exact = build.op("Cast", logs, to=TensorProto.DOUBLE) if len(layout.parts) > 1 else ""
    if "summed" in layout.parts:
        blocks.append(build.op("Mul", exact, weights))
    if "probabilities" in layout.parts:
        blocks.append(build.op("Mul", exponential(build, exact), weights))
    return Ballots(votes, build.op("Concat", *blocks, axis=CLASS_AXIS) if len(blocks) > 1 else votes)


def exponential(build: GraphBuilder, logs: str) -> str:
    """Probabilities of float64 log-probabilities."""
    part = build.op("Max", logs, build.constant(np.float64(LOWEST_LOG)))
    part = build.op("Mul", part, build.constant(np.float64(2.0**-SQUARINGS)))
    value = build.constant(np.float64(TAYLOR[0]))
    for coefficient in TAYLOR[1:]:
        value = build.op("Add", build.op("Mul", value, part), build.constant(np.float64(coefficient)))
    for _ in range(SQUARINGS):
        value = build.op("Mul", value, value)
    return value


def power(build: GraphBuilder, base: str, exponent: float) -> str:
    """The power of float64 probabilities; the exponent is a multiple of 1/2 above 0."""
    factors = [base] * int(exponent)
    if exponent % 1 > 0:
        factors.append(build.op("Sqrt", base))
    return reduce(partial(build.op, "Mul"), factors)


def voted_label(build: GraphBuilder, votes: str, summed: str) -> str:
    """The label with the most votes [N]; ties go to the higher sum, then to the lower class index."""
    highest = build.op("ReduceMax", votes, build.constant(np.array([1], dtype=np.int64)), keepdims=1)
    best = build.op("Where", build.op("Equal", votes, highest), summed, build.constant(np.float64(-np.inf)))
    return build.op("ArgMax", best, axis=1, keepdims=0)


def mixed_label(
    build: GraphBuilder, classifier: str, votes: str, probabilities: str, classes: int, amplification: float
) -> str:
    """The label of the mix [N].

    Args:
        build: The graph.
        classifier: float32 [N, K], log-probabilities.
        votes: float64 [N, K]; their sum is the weight of the jurors.
        probabilities: float64 [N, K], weighted sum of the jurors' probabilities.
        classes: K.
        amplification: A multiple of 1/2 above 0.
    """
    one = build.constant(np.array([1], dtype=np.int64))
    mean = build.op("Div", probabilities, build.op("ReduceSum", votes, one, keepdims=1))
    amplified = power(build, mean, amplification)
    total = build.op("CumSum", amplified, build.constant(np.int64(1)))
    total = build.op("Gather", total, build.constant(np.array([classes - 1], dtype=np.int64)), axis=1)
    jury = build.op("Mul", build.op("Div", amplified, total), "test/jury_share")
    own = exponential(build, build.op("Cast", classifier, to=TensorProto.DOUBLE))
    own = build.op("Mul", own, build.op("Sub", build.constant(np.float64(1)), "test/jury_share"))
    return build.op("ArgMax", build.op("Add", own, jury), axis=1, keepdims=0)


def settled(build: GraphBuilder, votes: str, ballots: str, left: Float64) -> str:
    """Where no votes that are left can change or tie the leader, after each member of a wave [n, w].

    Args:
        build: The graph that the wave is in.
        votes: float64 [n, K] before the wave.
        ballots: float64 [n, w, K], weighted votes of its members; empty where none votes.
        left: Weight of the votes that can follow each member's [w].
    """
    one, two = (build.constant(np.array([i], dtype=np.int64)) for i in (1, 2))
    totals = build.op("Unsqueeze", votes, one)
    if ballots:
        totals = build.op("Add", totals, build.op("CumSum", ballots, build.constant(np.int64(1))))
    highest, _ = build.node("TopK", [totals, two], 2, {"axis": CLASS_AXIS})
    leader, runner_up = (build.op("Gather", highest, build.constant(np.int64(i)), axis=CLASS_AXIS) for i in (0, 1))
    return build.op("Greater", build.op("Sub", leader, runner_up), build.constant(left))
