"""The decision in a graph: the answer of classifier and jurors, and the verdict at the end."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from s2ap_defend.sequential import SequentialTest
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.jury import JuryLayout, mixed_label, voted_label
from s2ap_export.graph.waves import FLAGGED, UNDECIDED, state_size, unpack

__all__ = ["answer_label", "decide"]


def answer_label(build: GraphBuilder, test: SequentialTest, layout: JuryLayout, own: str, jury: dict[str, str]) -> str:
    """The answer of the jurors asked so far, with the classifier where they are mixed, were nothing flagged [..., 1].

    Args:
        build: The graph.
        test: Who answers: 'robust' or 'mixed'.
        layout: What the jury keeps.
        own: float64 [..., K], probabilities of the classifier; empty where nothing needs them.
        jury: The jury's blocks [..., K] by name.
    """
    if test.answer == "robust":
        return voted_label(build, jury["votes"], jury["summed"])
    return mixed_label(build, own, jury["votes"], jury["probabilities"], layout.classes, test.amplification)


def decide(
    build: GraphBuilder, test: SequentialTest, layout: JuryLayout, classifier: str, own: str, finite: str, packed: str
) -> dict[str, str]:
    """The final rule and the vote on flagged rows, after the last wave: values by the names of outputs.

    Args:
        build: The main graph.
        test: The test.
        layout: What the jury keeps.
        classifier: float32 [N, K], log-probabilities.
        own: float64 [N, 1, K], its probabilities; empty where nothing needs them.
        finite: bool [N], whether all pixels are.
        packed: float64 [N, 1, 3 + S], the state after the last wave.
    """
    flat = build.constant(np.array([-1], dtype=np.int64))
    rows = build.constant(np.array([-1, state_size(layout)], dtype=np.int64))
    state = unpack(build, layout, build.op("Reshape", packed, rows))
    ratio, verdict, jury = state.ratio, state.verdict, layout.sums(build, state.sums)
    size = build.op("Abs", verdict)
    adversarial = build.op("Equal", size, build.constant(np.float64(abs(FLAGGED))))  # in the vote or behind it
    undecided = ""
    if test.final_threshold < np.inf or test.undecided_abstains:
        undecided = build.op("Equal", verdict, build.constant(np.float64(UNDECIDED)))
    if test.final_threshold < np.inf:
        above = build.op("Greater", ratio, build.constant(np.float64(test.final_threshold)))
        adversarial = build.op("Or", adversarial, build.op("And", undecided, above))

    base_label = build.op("ArgMax", classifier, axis=-1, keepdims=1)
    if test.answer == "accurate":
        label = base_label
    else:
        if own:
            own = build.op("Reshape", own, build.constant(np.array([-1, layout.classes], dtype=np.int64)))
        label = answer_label(build, test, layout, own, jury)
    if test.correction == "correct" and test.answer != "robust":
        label = build.op("Where", adversarial, voted_label(build, jury["votes"], jury["summed"]), label)
    changed, used = (build.op("Gather", jury["counts"], build.constant(np.int64(i)), axis=-1) for i in (0, 1))
    flagged = build.op("Reshape", adversarial, flat)
    abstained = build.op("Not", finite)
    if test.correction == "reject":
        abstained = build.op("Or", abstained, flagged)
    if test.undecided_abstains:
        abstained = build.op("Or", abstained, build.op("Reshape", undecided, flat))
    votes = jury.get("votes") or build.op("Mul", size, build.constant(np.zeros(layout.classes)))
    return {
        "label": build.op("Reshape", label, flat),
        "adversarial": flagged,
        "base_label": build.op("Reshape", base_label, flat),
        "probabilities": build.op("Exp", classifier),
        "label_change_rate": build.op("Cast", build.op("Div", changed, used), to=TensorProto.FLOAT),
        "log_likelihood_ratio": build.op("Reshape", ratio, flat),
        "members_used": build.op("Cast", used, to=TensorProto.INT64),
        "votes": votes,
        "abstained": abstained,
    }
