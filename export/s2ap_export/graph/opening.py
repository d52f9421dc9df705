"""The first wave as graph: the first answer of classifier and opening, then the evidence of all its members."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from s2ap_defend.sequential.tables import WEIGHT_UNIT
from s2ap_defend.stages import member_scope
from s2ap_export.graph.answers import read_evidence, read_signals
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.decision import answer_label
from s2ap_export.graph.jury import Ballots, read_ballots
from s2ap_export.graph.waves import (
    FLAGGED,
    FLAGGED_IN_VOTE,
    UNDECIDED,
    State,
    Wave,
    added_rows,
    counts_of,
    stops_of,
    sums_of,
)

__all__ = ["Spoken", "judge", "read_opening", "scan_members"]


@dataclass(frozen=True)
class Spoken:
    """Names of what the first wave says of n rows.

    Attributes:
        logs: float32 [n, w, K], of its members.
        jury: float64 [n, 1, S - 2], what the opening's jurors add; empty where nobody votes.
        verdict: float64 [n, 1, 1], before it: undecided, or flagged for its pixels.
        ballots: Of all its members; None where they are no more than the opening, or nobody votes.
    """

    logs: str
    jury: str
    verdict: str
    ballots: Ballots | None = None


def read_opening(build: GraphBuilder, wave: Wave, valid: str, classifier: str) -> tuple[Spoken, str]:
    """What the first wave says, and the classifier's probabilities float64 [N, 1, K], empty where nothing needs them.

    Where the answer is mixed the classifier stands before the members, as one without a vote: so there is one
    exponential, and a row of zeros to begin the sums with.

    Args:
        build: The main graph, which has the members of the wave.
        wave: The first.
        valid: bool [N, 1, 1], images that are not are flagged.
        classifier: float32 [N, K], log-probabilities.
    """
    test, layout = wave.test, wave.layout
    codes = (build.constant(np.float64(code)) for code in (UNDECIDED, FLAGGED_IN_VOTE if test.polls else FLAGGED))
    verdict = build.op("Where", valid, *codes)
    front = [classifier] if test.answer == "mixed" else []
    stack = _stack(build, wave, *front)
    if not layout.parts:
        return Spoken(stack, "", verdict), ""
    weights = wave.tables.vote_weights
    if front:
        weights = build.op("Concat", build.constant(np.zeros((1, 1))), weights, axis=0)
    said = read_ballots(build, layout, weights, stack, np.append(np.zeros(len(front), bool), wave.jurors))
    sums, last = said.rows, len(front) + test.opening - 1
    if last:
        sums = build.op("CumSum", sums, build.constant(np.int64(1)))  # in the order of the loop
    jury = build.op("Gather", sums, build.constant(np.array([last], dtype=np.int64)), axis=1)
    ballots = said if test.opening < wave.size else None
    if not front:
        return Spoken(stack, jury, verdict, ballots), ""
    own = build.op("Gather", said.probabilities, build.constant(np.array([0], dtype=np.int64)), axis=1)
    if ballots:
        ballots = Ballots(_behind_first(build, said.votes), _behind_first(build, said.rows), "")
    return Spoken(_behind_first(build, stack), jury, verdict, ballots), own


def judge(
    build: GraphBuilder, wave: Wave, spoken: Spoken, classifier: str, own: str, reconstruction_error: str
) -> State:
    """The state after the first wave.

    Args:
        build: The graph.
        wave: The first.
        spoken: What it says of n rows.
        classifier: float32 [n, K], log-probabilities.
        own: float64 [n, 1, K], its probabilities; empty where nothing needs them.
        reconstruction_error: float32 [n].
    """
    test, layout, one = wave.test, wave.layout, build.constant(np.array([1], dtype=np.int64))
    jury = layout.blocks(build, spoken.jury)
    if test.answer == "accurate":
        label = build.op("Unsqueeze", build.op("ArgMax", classifier, axis=-1, keepdims=1), one)
    else:
        label = answer_label(build, test, layout, own, jury)
    answer = build.op("Equal", label, build.constant(np.arange(layout.classes, dtype=np.int64)))  # [n, 1, K]

    signals, mean, said = {signal.name for signal in test.signals}, "", ""
    if "jury margin" in signals:
        weight = np.float64(max(test.vote_weights[: test.opening].sum(), WEIGHT_UNIT))
        mean = build.op("Div", jury["summed"], build.constant(weight))
    if "classifier surprise" in signals:
        said = build.op("Unsqueeze", classifier, one)
    ratio = read_signals(build, test, said, mean, answer, reconstruction_error)
    if not ratio:
        ratio = build.op("Sub", spoken.verdict, spoken.verdict)

    evidence = read_evidence(build, test, wave.tables, wave.first, wave.size, spoken.logs, answer)
    ballots = ""
    if spoken.ballots:  # the opening has voted
        counted = build.constant((wave.jurors & ~wave.opening)[:, None])
        ballots = build.op("Where", counted, spoken.ballots.votes, build.constant(np.float64(0)))
    stops = stops_of(build, wave, evidence, jury.get("votes", ""), ballots, ratio, spoken.verdict)
    if wave.opening.all():
        counts = build.op("ReduceSum", counts_of(build, evidence), one, keepdims=1)
        sums = build.op("Concat", counts, spoken.jury, axis=-1) if spoken.jury else counts
    else:
        sums = sums_of(build, wave, stops.limit, added_rows(build, wave, evidence, spoken.ballots), "")
    return State(stops.ratio, stops.verdict, build.op("Cast", label, to=TensorProto.DOUBLE), sums)


def scan_members(build: GraphBuilder, wave: Wave, state: State) -> State:
    """The state after a later wave, whose members are in the graph.

    Args:
        build: The graph.
        wave: The wave.
        state: Before it.
    """
    logs, layout = _stack(build, wave), wave.layout
    answer = build.op("Equal", state.first, build.constant(np.arange(layout.classes, dtype=np.float64)))
    evidence = read_evidence(build, wave.test, wave.tables, wave.first, wave.size, logs, answer)
    ballots, votes = None, ""
    if wave.jurors.any():
        ballots = read_ballots(build, layout, wave.tables.vote_weights, logs, wave.jurors)
    if layout.parts and (wave.test.await_vote or wave.ends_votes):
        votes = layout.sums(build, state.sums)["votes"]
    ends = ballots.votes if ballots else ""
    stops = stops_of(build, wave, evidence, votes, ends, state.ratio, state.verdict)
    sums = sums_of(build, wave, stops.limit, added_rows(build, wave, evidence, ballots), state.sums)
    return State(stops.ratio, stops.verdict, state.first, sums)


def _stack(build: GraphBuilder, wave: Wave, *front: str) -> str:
    """Log-probabilities of the members of a wave, those of others before them, float32 [n, w, K]."""
    members = range(wave.first, wave.first + wave.size)
    said = [*front, *(f"{member_scope(i)}/log_probabilities" for i in members)]
    flat = build.op("Concat", *said, axis=-1) if len(said) > 1 else said[0]
    shape = np.array([-1, len(said), wave.layout.classes], dtype=np.int64)
    return build.op("Reshape", flat, build.constant(shape))


def _behind_first(build: GraphBuilder, value: str) -> str:
    """All entries [n, w, ...] but the first [n, w - 1, ...]."""
    bounds = (build.constant(np.array([place], dtype=np.int64)) for place in (1, np.iinfo(np.int64).max, 1))
    return build.op("Slice", value, *bounds)
