"""What is known before any evidence of a member is counted, as graph: the first answer and the evidence of signals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from s2ap_defend.sequential import SequentialTest, Signal
from s2ap_export.graph.answers import increments_of
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.jury import SUMMED, answer_label, jurors, tally_parts, tally_rows
from s2ap_export.graph.waves import FLAGS, split_tally

__all__ = ["Opening", "open_rows", "reads_classifier"]


@dataclass(frozen=True)
class Opening:
    """Names of the values after the votes of the opening: first answers int64 [n] and state float64 [n, S]."""

    first_answer: str
    state: str


def reads_classifier(test: SequentialTest) -> bool:
    """Whether the first answer or a signal depends on what the classifier says."""
    return test.answer != "robust" or any(signal.name == "classifier surprise" for signal in test.signals)


def open_rows(
    build: GraphBuilder,
    test: SequentialTest,
    classifier: str,
    members: list[str],
    reconstruction_error: str,
    valid: str,
    classes: int,
) -> Opening:
    """The first answer and the state before the first member's evidence; the votes of the opening are counted.

    Args:
        build: The graph.
        test: The decision.
        classifier: Its log-probabilities, float32 [n, K].
        members: Log-probabilities of the members of the opening, float32 [n, K] each.
        reconstruction_error: What the purifier left, float32 [n].
        valid: bool [n, 1]; rows that are not are flagged before anybody is asked.
        classes: Number of classes K.
    """
    flagged = build.op("Cast", build.op("Not", valid), to=TensorProto.DOUBLE)
    voting = jurors(test, 0, test.opening)
    columns = [0.0, *(float(name in {"decided", "adversarial"}) for name in FLAGS)]
    if voting:
        rows = tally_rows(build, test, voting, [members[i] for i in voting], classes)
        if len(voting) > 1:
            rows = build.op("CumSum", rows, build.constant(np.int64(1)))  # in the order of the members
        tally = build.op("Gather", rows, build.constant(np.int64(len(voting) - 1)), axis=1)
    else:
        tally = build.op("Mul", flagged, build.constant(np.zeros((1, len(tally_parts(test)) * classes))))
    parts = split_tally(build, test, tally, classes)
    first_answer = answer_label(build, test, classifier, parts)
    ratio = []
    for i, signal in enumerate(test.signals):
        score = _score(build, test, signal, classifier, parts, reconstruction_error, first_answer, classes)
        added = increments_of(build, score, f"test/signal_{i}_edges", f"test/signal_{i}_increments")
        ratio = [build.op("Add", ratio[0], added) if ratio else added]
    flags = build.op("Mul", flagged, build.constant(np.array([columns[len(ratio) :]])))
    state = [build.op("Unsqueeze", value, build.integers(1)) for value in ratio]
    return Opening(first_answer, build.op("Concat", *state, flags, tally, axis=1))


def _score(
    build: GraphBuilder,
    test: SequentialTest,
    signal: Signal,
    classifier: str,
    parts: dict[str, str],
    reconstruction_error: str,
    first_answer: str,
    classes: int,
) -> str:
    """The score of a signal, float32 [n, 1]."""
    one = build.integers(1)
    if signal.name == "reconstruction error":
        return build.op("Unsqueeze", reconstruction_error, one)
    label = build.op("Unsqueeze", first_answer, one)
    if signal.name == "classifier surprise":
        return build.op("Neg", build.op("GatherElements", classifier, label, axis=1))
    weight = max(float(test.vote_weights[: test.opening].sum()), 2.0**-8)
    mean = build.op("Div", parts[SUMMED], build.constant(np.float64(weight)))
    is_label = build.op("Equal", label, build.constant(np.arange(classes, dtype=np.int64)))
    others = build.op("Where", is_label, build.constant(np.float64(-np.inf)), mean)
    highest = build.op("ReduceMax", others, one, keepdims=1)
    margin = build.op("Sub", highest, build.op("GatherElements", mean, label, axis=1))
    return build.op("Cast", margin, to=TensorProto.FLOAT)
