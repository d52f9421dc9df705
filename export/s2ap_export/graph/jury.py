"""What jurors say, as graph: tallies of their votes, and the labels that these give (s2ap_defend.sequential.jury).

A tally is one row of float64 numbers, of K classes each, in the order of the members:

    weights of votes | weighted log-probabilities | weighted probabilities

The second part is there where a vote gives a label or a signal reads it, the third under 'mixed'. The weight of the
jurors asked is the sum of their votes: weights are multiples of 1/256, so every order of summing gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from s2ap_defend.sequential import SequentialTest
from s2ap_export.graph.answers import CLASS_AXIS
from s2ap_export.graph.builder import GraphBuilder

__all__ = ["answer_label", "jurors", "tally_parts", "tally_rows", "voted_label"]

VOTES, SUMMED, PROBABILITIES = "votes", "summed", "probabilities"


def jurors(test: SequentialTest, first: int, stop: int) -> list[int]:
    """Those of the members `first` ... `stop` - 1 who vote."""
    return [i for i in range(first, stop) if test.vote_weights[i] > 0.0]


def tally_parts(test: SequentialTest) -> tuple[str, ...]:
    """Names of the parts of a tally, each of as many columns as there are classes."""
    vote_decides = test.correct or test.answer == "robust"
    summed = vote_decides or any(signal.name == "jury margin" for signal in test.signals)
    return (VOTES, *[SUMMED] * summed, *[PROBABILITIES] * (test.answer == "mixed"))


def tally_rows(
    build: GraphBuilder, test: SequentialTest, voting: Sequence[int], log_probabilities: Sequence[str], classes: int
) -> str:
    """What each of j jurors adds to a tally of C columns, float64 [n, j, C].

    Args:
        build: The graph that they are in.
        test: Its answer; the weights are read from the graph.
        voting: Their places among the members of the test.
        log_probabilities: Of each, float32 [n, K].
        classes: Number of classes K.
    """
    one = build.integers(1)
    logs = build.op("Concat", *[build.op("Unsqueeze", name, one) for name in log_probabilities], axis=1)
    weights = build.op(
        "Gather", "test/vote_weights", build.constant(np.array(voting, dtype=np.int64)[:, None]), axis=0
    )  # [j, 1]
    vote = build.op("ArgMax", logs, axis=CLASS_AXIS, keepdims=1)
    voted = build.op("Equal", vote, build.constant(np.arange(classes, dtype=np.int64)))
    exact = build.op("Cast", logs, to=TensorProto.DOUBLE)
    of = {
        VOTES: lambda: build.op("Cast", voted, to=TensorProto.DOUBLE),
        SUMMED: lambda: exact,
        PROBABILITIES: lambda: build.op("Exp", exact),
    }
    rows = build.op("Concat", *[of[part]() for part in tally_parts(test)], axis=CLASS_AXIS)
    return build.op("Mul", rows, weights)


def voted_label(build: GraphBuilder, parts: dict[str, str]) -> str:
    """Label with the largest weight of votes, int64 [n]; ties as in the reference.

    Args:
        build: The graph.
        parts: Values of the parts of a tally by name, float64 [n, K].
    """
    most = build.op("ReduceMax", parts[VOTES], build.integers(1), keepdims=1)
    tied = build.op("Equal", parts[VOTES], most)
    best = build.op("Where", tied, parts[SUMMED], build.constant(np.float64(-np.inf)))
    return build.op("ArgMax", best, axis=1, keepdims=0)


def answer_label(build: GraphBuilder, test: SequentialTest, classifier: str, parts: dict[str, str]) -> str:
    """The answer of the classifier and the jurors asked so far, were nothing flagged, int64 [n].

    Args:
        build: The graph.
        test: Who answers.
        classifier: Log-probabilities of the classifier, float32 [n, K].
        parts: As of `voted_label`.
    """
    if test.answer == "robust":
        return voted_label(build, parts)
    if test.answer == "accurate":
        return build.op("ArgMax", classifier, axis=1, keepdims=0)
    weight = build.op("ReduceSum", parts[VOTES], build.integers(1), keepdims=1)
    mean = build.op("Div", parts[PROBABILITIES], weight)
    amplified = build.op("Pow", mean, "test/amplification")
    sums = build.op("CumSum", amplified, build.constant(np.int64(1)))  # in the order of the classes
    share = build.op("Div", amplified, build.op("Gather", sums, build.integers(-1), axis=1))
    said = build.op("Exp", build.op("Cast", classifier, to=TensorProto.DOUBLE))
    rest = build.op("Sub", build.constant(np.float64(1)), "test/jury_share")
    mix = build.op("Add", build.op("Mul", rest, said), build.op("Mul", "test/jury_share", share))
    return build.op("ArgMax", mix, axis=1, keepdims=0)
