"""The first wave as graph: the first answer of classifier and opening, then the evidence of all its members."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from s2ap_defend.sequential.tables import WEIGHT_UNIT
from s2ap_defend.stages import member_scope
from s2ap_export.graph.answers import read_evidence, read_signals
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.decision import answer_label
from s2ap_export.graph.jury import Ballots, read_ballots
from s2ap_export.graph.waves import State, Wave, initial_state, scan_wave

__all__ = ["Opened", "open_test", "scan_members"]


@dataclass(frozen=True)
class Opened:
    """Names of the values after the first wave.

    Attributes:
        base_label: int64 [N], of the classifier.
        answer: bool [N, 1, K], the first answer.
        state: After the wave.
    """

    base_label: str
    answer: str
    state: State


def open_test(build: GraphBuilder, wave: Wave, valid: str, classifier: str, reconstruction_error: str) -> Opened:
    """Ask the first wave.

    Args:
        build: The main graph, which has the members of the wave.
        wave: The first.
        valid: bool [N, 1], images that are not are flagged.
        classifier: float32 [N, K], log-probabilities.
        reconstruction_error: float32 [N].
    """
    test, layout = wave.test, wave.layout
    one, zero = (build.constant(np.array([i], dtype=np.int64)) for i in (1, 0))
    base_label = build.op("ArgMax", classifier, axis=1, keepdims=0)
    jury = mean = ""
    if layout.parts:
        end = build.constant(np.array([test.opening], dtype=np.int64))
        logs, weights = _stack(build, wave), wave.tables.vote_weights
        if test.opening < wave.size:
            logs, weights = build.op("Slice", logs, zero, end, one), build.op("Slice", weights, zero, end)
        jury = read_ballots(build, layout, weights, logs, test.vote_weights[: test.opening] > 0).rows
        sums = build.op("CumSum", jury, build.constant(np.int64(1)))  # in the order of the loop
        jury = build.op("Gather", sums, build.constant(np.int64(test.opening - 1)), axis=1)
    label = answer_label(build, test, layout, classifier, base_label, jury)
    flat = build.op("Equal", build.op("Unsqueeze", label, one), build.constant(np.arange(layout.classes)))
    if any(signal.name == "jury margin" for signal in test.signals):
        weight = np.float64(max(test.vote_weights[: test.opening].sum(), WEIGHT_UNIT))
        mean = build.op("Div", layout.split(build, jury)["summed"], build.constant(weight))
    ratio = read_signals(build, test, classifier, mean, flat, reconstruction_error)
    answer = build.op("Unsqueeze", flat, one)
    state = initial_state(build, test, valid, ratio, jury)
    return Opened(base_label, answer, scan_members(build, wave, answer, state))


def scan_members(build: GraphBuilder, wave: Wave, answer: str, state: State) -> State:
    """The state after the members of a wave, which are in the graph.

    Args:
        build: The graph.
        wave: The wave.
        answer: bool [n, 1, K], the first answer.
        state: Before the wave.
    """
    logs, tables = _stack(build, wave), wave.tables
    evidence = read_evidence(build, wave.test, tables, wave.first, wave.size, logs, answer)
    ballots: Ballots | None = None
    if wave.voting.any():
        ballots = read_ballots(build, wave.layout, tables.vote_weights, logs, wave.voting)
    return scan_wave(build, wave, evidence, ballots, state)


def _stack(build: GraphBuilder, wave: Wave) -> str:
    """Log-probabilities of the members of a wave, float32 [n, w, K]."""
    one = build.constant(np.array([1], dtype=np.int64))
    members = range(wave.first, wave.first + wave.size)
    said = [build.op("Unsqueeze", f"{member_scope(i)}/log_probabilities", one) for i in members]
    return build.op("Concat", *said, axis=1) if len(said) > 1 else said[0]
