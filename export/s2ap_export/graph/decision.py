"""The decision in a graph: the first answer, and the verdict at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from s2ap_defend.sequential import SequentialTest
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.jury import JuryLayout, mixed_label, voted_label
from s2ap_export.graph.waves import State

__all__ = ["Decision", "answer_label", "decide"]


@dataclass(frozen=True)
class Decision:
    """Names of the values that hold the outcome, as in Verdicts."""

    label: str
    adversarial: str
    label_change_rate: str
    log_likelihood_ratio: str
    members_used: str
    votes: str
    abstained: str


def answer_label(
    build: GraphBuilder, test: SequentialTest, layout: JuryLayout, classifier: str, base_label: str, jury: str
) -> str:
    """The answer of the classifier and the jurors asked so far, were nothing flagged [N].

    Args:
        build: The graph.
        test: Who answers.
        layout: What the jury keeps.
        classifier: float32 [N, K], log-probabilities.
        base_label: int64 [N], their argmax.
        jury: float64 [N, J].
    """
    if test.answer == "accurate":
        return base_label
    parts = layout.split(build, jury)
    if test.answer == "robust":
        return voted_label(build, parts["votes"], parts["summed"])
    summed = parts["votes"], parts["probabilities"]
    return mixed_label(build, classifier, *summed, layout.classes, test.amplification)


def decide(
    build: GraphBuilder,
    test: SequentialTest,
    layout: JuryLayout,
    classifier: str,
    base_label: str,
    finite: str,
    state: State,
) -> Decision:
    """The final rule and the vote on flagged rows, after the last wave.

    Args:
        build: The main graph.
        test: The test.
        layout: What the jury keeps.
        classifier: float32 [N, K], log-probabilities.
        base_label: int64 [N].
        finite: bool [N], whether all pixels are.
        state: After the last wave.
    """
    one = build.constant(np.array([1], dtype=np.int64))
    flat = build.constant(np.array([-1], dtype=np.int64))
    ratio, decided, adversarial = (
        build.op("Reshape", value, flat) for value in (state.ratio, state.decided, state.adversarial)
    )
    undecided = build.op("Not", decided)
    if test.final_threshold < np.inf:
        above = build.op("Greater", ratio, build.constant(np.float64(test.final_threshold)))
        adversarial = build.op("Or", adversarial, build.op("And", undecided, above))
    abstained = build.op("Not", finite)
    if not test.correct:
        abstained = build.op("Or", abstained, adversarial)
    if test.undecided_abstains:
        abstained = build.op("Or", abstained, undecided)

    label = answer_label(build, test, layout, classifier, base_label, state.jury)
    parts = layout.split(build, state.jury)
    if test.correct and test.answer != "robust":
        label = build.op("Where", adversarial, voted_label(build, parts["votes"], parts["summed"]), label)
    used = build.op("ReduceSum", state.counts, one, keepdims=0)
    changed = build.op("Gather", state.counts, build.constant(np.int64(1)), axis=1)
    rate = build.op("Div", changed, used)
    if not parts:
        none = build.constant(np.zeros(layout.classes))
        parts = {"votes": build.op("Where", build.op("Unsqueeze", decided, one), none, none)}
    return Decision(
        label=label,
        adversarial=adversarial,
        label_change_rate=build.op("Cast", rate, to=TensorProto.FLOAT),
        log_likelihood_ratio=ratio,
        members_used=build.op("Cast", used, to=TensorProto.INT64),
        votes=parts["votes"],
        abstained=abstained,
    )
