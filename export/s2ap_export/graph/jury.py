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

__all__ = ["Ballots", "JuryLayout", "mixed_label", "read_ballots", "settled", "voted_label"]

Part = Literal["votes", "summed", "probabilities"]
COUNTS = 2  # columns before the jury's blocks: members that do not agree with the first answer, and members asked


@dataclass(frozen=True)
class JuryLayout:
    """The sums over asked members that a row carries: two counts, then blocks of the jury of K columns each.

    Attributes:
        parts: The blocks: weight of votes, weighted sums of log-probabilities and of probabilities.
        classes: K.
    """

    parts: tuple[Part, ...]
    classes: int

    @classmethod
    def of(cls, test: SequentialTest, classes: int) -> JuryLayout:
        """What the answer and the vote of a test need; no blocks where nobody votes."""
        if not test.vote_weights.any():
            return cls((), classes)
        votes = test.answer == "robust" or test.correction == "correct"
        summed = votes or any(signal.name == "jury margin" for signal in test.signals)
        parts: dict[Part, bool] = {"votes": True, "summed": summed, "probabilities": test.answer == "mixed"}
        return cls(tuple(name for name, needed in parts.items() if needed), classes)

    @property
    def columns(self) -> int:
        """Numbers of a row, the counts included."""
        return COUNTS + len(self.parts) * self.classes

    def blocks(self, build: GraphBuilder, jury: str) -> dict[str, str]:
        """The blocks [..., K] by name, of rows without the counts [..., S - 2]."""
        if len(self.parts) < 2:
            return dict.fromkeys(self.parts, jury)
        return dict(zip(self.parts, self._split(build, jury, []), strict=True))

    def sums(self, build: GraphBuilder, sums: str) -> dict[str, str]:
        """The counts [..., 2] and the blocks [..., K] by name, of rows [..., S]."""
        return dict(
            zip(("counts", *self.parts), self._split(build, sums, [COUNTS]) if self.parts else [sums], strict=True)
        )

    def _split(self, build: GraphBuilder, rows: str, before: list[int]) -> tuple[str, ...]:
        sizes = [*before, *[self.classes] * len(self.parts)]
        return build.node("Split", [rows, build.constant(np.array(sizes, dtype=np.int64))], len(sizes), {"axis": -1})


@dataclass(frozen=True)
class Ballots:
    """What w members add to the jury of n rows.

    Attributes:
        votes: float64 [n, w, K], their weighted votes.
        rows: float64 [n, w, S - 2], all blocks of the layout.
        probabilities: float64 [n, w, K], not weighted; empty where the layout has none.
    """

    votes: str
    rows: str
    probabilities: str


def read_ballots(build: GraphBuilder, layout: JuryLayout, weights: str, logs: str, jurors: Bool) -> Ballots:
    """The ballots of members.

    Args:
        build: The graph that they are in.
        layout: What the jury keeps; it has blocks.
        weights: float64 [w, 1], of their votes; 0 of others.
        logs: float32 [n, w, K].
        jurors: Who has a vote [w]; others add nothing, whatever they say.
    """
    best = build.op("ArgMax", logs, axis=-1, keepdims=1)
    voted = build.op("Equal", best, build.constant(np.arange(layout.classes, dtype=np.int64)))
    nothing = build.constant(np.float64(0))
    votes = build.op("Where", voted, weights, nothing)
    blocks, probabilities = [votes], ""
    exact = build.op("Cast", logs, to=TensorProto.DOUBLE) if len(layout.parts) > 1 else ""
    if "summed" in layout.parts:
        counted = exact if jurors.all() else build.op("Where", build.constant(jurors[:, None]), exact, nothing)
        blocks.append(build.op("Mul", counted, weights))
    if "probabilities" in layout.parts:
        probabilities = exponential(build, exact)
        blocks.append(build.op("Mul", probabilities, weights))
    return Ballots(votes, build.op("Concat", *blocks, axis=-1) if len(blocks) > 1 else votes, probabilities)


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
    """The label with the most votes [..., 1]; ties go to the higher sum, then to the lower class index."""
    highest = build.op("ReduceMax", votes, build.constant(np.array([-1], dtype=np.int64)), keepdims=1)
    best = build.op("Where", build.op("Equal", votes, highest), summed, build.constant(np.float64(-np.inf)))
    return build.op("ArgMax", best, axis=-1, keepdims=1)


def mixed_label(
    build: GraphBuilder, own: str, votes: str, probabilities: str, classes: int, amplification: float
) -> str:
    """The label of the mix [..., 1].

    Args:
        build: The graph.
        own: float64 [..., K], the classifier's probabilities by `exponential`.
        votes: float64 [..., K]; their sum is the weight of the jurors.
        probabilities: float64 [..., K], weighted sum of the jurors' probabilities.
        classes: K.
        amplification: A multiple of 1/2 above 0.
    """
    last = build.constant(np.array([-1], dtype=np.int64))
    mean = build.op("Div", probabilities, build.op("ReduceSum", votes, last, keepdims=1))
    amplified = power(build, mean, amplification)
    total = build.op("CumSum", amplified, build.constant(np.int64(-1)))
    total = build.op("Gather", total, build.constant(np.array([classes - 1], dtype=np.int64)), axis=-1)
    jury = build.op("Mul", build.op("Div", amplified, total), "test/jury_share")
    rest = build.op("Mul", own, build.op("Sub", build.constant(np.float64(1)), "test/jury_share"))
    return build.op("ArgMax", build.op("Add", rest, jury), axis=-1, keepdims=1)


def settled(build: GraphBuilder, votes: str, ballots: str, left: Float64) -> str:
    """Where no votes that are left can change or tie the leader, before a wave and after each member [n, w + 1, 1].

    Args:
        build: The graph that the wave is in.
        votes: float64 [n, 1, K] before the wave.
        ballots: float64 [n, w, K], weighted votes of its members; empty where none votes.
        left: Weight of the votes that can follow [w + 1].
    """
    totals = votes
    if ballots:
        totals = build.op("CumSum", build.op("Concat", votes, ballots, axis=1), build.constant(np.int64(1)))
    two, halves = (build.constant(np.array(sizes, dtype=np.int64)) for sizes in ([2], [1, 1]))
    highest, _ = build.node("TopK", [totals, two], 2, {"axis": -1})
    leader, runner_up = build.node("Split", [highest, halves], 2, {"axis": -1})
    return build.op("Greater", build.op("Sub", leader, runner_up), build.constant(left[:, None]))
