"""The sequential test as graph: one wave of members, and the decision at the end.

`s2ap_defend.sequential.run_sequential_test` is the reference; these nodes equal it exactly. It loops over members; here
a wave is computed at once. Prefix sums of the increments, from the log-likelihood ratio before the wave, are the ratios
after every member: CumSum adds in the order of the loop, so they agree to the last bit. A member counts as long as no
boundary was crossed before it. Curtailment likewise: prefix sums of the votes as if the vote went on are right up to
the member that settles it, and members after that one do not count. What a row carries from wave to wave is one row of
float64 numbers, the flags 0 or 1:

    ratio | decided | adversarial | settled | votes of each class | summed log-probabilities of each class
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from s2ap_defend.sequential import SequentialTest
from s2ap_defend.types import Float64
from s2ap_export.graph.answers import CLASS_AXIS, Answers, Tables, read_answers
from s2ap_export.graph.builder import GraphBuilder

__all__ = ["Decision", "decide", "initial_state", "scan_wave", "state_size", "waiting_rows"]


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


def state_size(classes: int) -> int:
    """Numbers that a row carries from wave to wave."""
    return 4 + 2 * classes


def initial_state(build: GraphBuilder, base_label: str, classes: int) -> str:
    """The state [N, S] before the first member: all zero."""
    rows = build.op("Shape", base_label)
    columns = build.constant(np.array([state_size(classes)], dtype=np.int64))
    shape = build.op("Concat", rows, columns, axis=0)
    return build.op("Expand", build.constant(np.zeros((1, 1))), shape)


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
    axis = build.constant(np.array([CLASS_AXIS], dtype=np.int64))
    one = build.constant(np.array([1], dtype=np.int64))
    along = build.constant(np.int64(1))
    answers = read_answers(build, test, tables, first, log_probabilities, base_label, classes)

    ratio, decided, adversarial, settled, votes, summed = _unpack(build, state, classes)
    decided, adversarial = (build.op("Cast", flag, to=TensorProto.BOOL) for flag in (decided, adversarial))
    track = build.op("CumSum", build.op("Concat", ratio, answers.increments, axis=1), along)  # [n, w + 1]
    after = build.op("Slice", track, one, build.constant(np.array([size + 1], dtype=np.int64)), one)  # [n, w]
    upper = build.op("GreaterOrEqual", after, tables.upper)
    stops = build.op("Or", upper, build.op("LessOrEqual", after, tables.lower))
    open_ = build.op("And", _none_before(build, stops), build.op("Not", decided))  # [n, w]: undecided when asked

    steps = build.op("ReduceSum", build.op("Cast", open_, to=TensorProto.INT64), one, keepdims=1)
    ratio = build.op("GatherElements", track, steps, axis=1)
    adversarial = build.op("Or", adversarial, _any(build, build.op("And", open_, upper)))
    decided = build.op("Or", decided, _any(build, build.op("And", open_, stops)))
    asked = open_
    if first < _voters(test):
        votes_on = build.constant(np.arange(first, first + size) < test.vote_members)
        asked = build.op("Or", open_, build.op("And", adversarial, votes_on))
    if test.curtail and first + 1 < _voters(test):
        voted_on = build.op("Or", build.op("Not", open_), upper)  # or clean, and then nobody is asked for a vote
        weight = _base_vote_weight(build, test, tables, ratio)
        left = test.vote_members - np.arange(first + 1, first + size + 1, dtype=np.float64)
        settles = build.op("And", voted_on, _is_settled(build, answers, asked, votes, weight, left))
        asked = build.op("And", asked, _none_before(build, settles))
        settled = build.op("Cast", _any(build, settles), to=TensorProto.DOUBLE)  # it was not, or nobody would ask
    asked = build.op("Unsqueeze", asked, axis)  # [n, w, 1]

    counted = build.op("Cast", build.op("And", asked, answers.voted), to=TensorProto.DOUBLE)
    votes = build.op("Add", votes, build.op("ReduceSum", counted, one, keepdims=0))
    logs = build.op("Cast", answers.log_probabilities, to=TensorProto.DOUBLE)
    added = build.op("Where", asked, logs, build.constant(np.float64(0)))
    sums = build.op("Concat", build.op("Unsqueeze", summed, one), added, axis=1)
    sums = build.op("CumSum", sums, along)  # in the order of the loop, which a sum need not keep
    summed = build.op("Gather", sums, build.constant(np.int64(size)), axis=1)
    flags = [build.op("Cast", flag, to=TensorProto.DOUBLE) for flag in (decided, adversarial)]
    return build.op("Concat", ratio, *flags, settled, votes, summed, axis=1)


def waiting_rows(build: GraphBuilder, test: SequentialTest, first: int, state: str) -> str:
    """Rows [N] that member `first` asks: undecided ones, and flagged ones whose vote goes on."""
    decided, adversarial, settled = (
        build.op("Cast", build.op("Gather", state, build.constant(np.int64(column)), axis=1), to=TensorProto.BOOL)
        for column in (1, 2, 3)
    )
    undecided = build.op("Not", decided)
    if first >= _voters(test):
        return undecided
    return build.op("Or", undecided, build.op("And", adversarial, build.op("Not", settled)))


def decide(
    build: GraphBuilder, test: SequentialTest, tables: Tables, state: str, base_label: str, classes: int
) -> Decision:
    """The final rule and the correction vote, from the state [N, S] after the last wave."""
    one = build.constant(np.array([1], dtype=np.int64))
    flat = build.constant(np.array([-1], dtype=np.int64))
    column, decided, adversarial, _, votes, summed = _unpack(build, state, classes)
    ratio, decided, adversarial = (build.op("Reshape", value, flat) for value in (column, decided, adversarial))
    decided, adversarial = (build.op("Cast", flag, to=TensorProto.BOOL) for flag in (decided, adversarial))
    undecided = build.op("Not", decided)
    above = build.op("Greater", ratio, build.constant(np.float64(test.final_threshold), "final_threshold"))
    adversarial = build.op("Or", adversarial, build.op("And", undecided, above))
    nowhere = build.op("And", undecided, decided)
    abstained = build.op(
        "Or", nowhere if test.correct else adversarial, undecided if test.undecided_abstains else nowhere
    )

    label = base_label
    base_column = build.op("Unsqueeze", base_label, one)
    if test.correct:
        is_base = build.op("Equal", base_column, build.constant(np.arange(classes, dtype=np.int64)))  # [N, K]
        weighted = _weighted(build, votes, is_base, _base_vote_weight(build, test, tables, column))
        tied = build.op("Equal", weighted, build.op("ReduceMax", weighted, one, keepdims=1))
        best = build.op("Where", tied, summed, build.constant(np.float64(-np.inf)))
        label = build.op("Where", adversarial, build.op("ArgMax", best, axis=1, keepdims=0), base_label)

    used = build.op("ReduceSum", votes, one, keepdims=0)
    of_base = build.op("Reshape", build.op("GatherElements", votes, base_column, axis=1), flat)
    changed = build.op("Div", build.op("Sub", used, of_base), used)
    return Decision(
        label=label,
        adversarial=adversarial,
        label_change_rate=build.op("Cast", changed, to=TensorProto.FLOAT),
        log_likelihood_ratio=ratio,
        members_used=build.op("Cast", used, to=TensorProto.INT64),
        votes=build.op("Cast", votes, to=TensorProto.INT64),
        abstained=abstained,
    )


def _voters(test: SequentialTest) -> int:
    """Members that vote on a flagged input; none where it is rejected."""
    return test.vote_members if test.correct else 0


def _unpack(build: GraphBuilder, state: str, classes: int) -> tuple[str, ...]:
    """The parts of the state: ratio, decided, adversarial and settled [n, 1], votes and sums [n, K]."""
    parts = build.constant(np.array([1, 1, 1, 1, classes, classes], dtype=np.int64))
    return build.node("Split", [state, parts], 6, {"axis": 1})


def _base_vote_weight(build: GraphBuilder, test: SequentialTest, tables: Tables, ratio: str) -> str:
    """Weight of votes for the base label of rows flagged with these ratios [n, 1]; [n, 1], or [1] for all."""
    if len(test.base_vote_weights) == 1:
        return tables.base_vote_weights
    above = build.op("Cast", build.op("GreaterOrEqual", ratio, tables.base_vote_edges), to=TensorProto.INT64)
    place = build.op("ReduceSum", above, build.constant(np.array([1], dtype=np.int64)), keepdims=1)
    return build.op("Gather", tables.base_vote_weights, place, axis=0)


def _weighted(build: GraphBuilder, votes: str, is_base: str, weight: str) -> str:
    """Votes [..., K], those for the base label weighted."""
    return build.op("Where", is_base, build.op("Mul", votes, weight), votes)


def _is_settled(build: GraphBuilder, answers: Answers, asked: str, votes: str, weight: str, left: Float64) -> str:
    """Where the votes so far [n, w] have a leader that those that are left [w] cannot reach.

    Args:
        build: The graph that the wave is in.
        answers: Of the wave's members.
        asked: bool [n, w], who votes as long as nothing is settled in this wave.
        votes: float64 [n, K] before the wave.
        weight: Of votes for the base label, [n, 1] or [1].
        left: Votes that can follow each member's.
    """
    one, two = (build.constant(np.array([i], dtype=np.int64)) for i in (1, 2))
    counted = build.op("And", build.op("Unsqueeze", asked, two), answers.voted)
    counted = build.op("CumSum", build.op("Cast", counted, to=TensorProto.DOUBLE), build.constant(np.int64(1)))
    totals = build.op("Add", build.op("Unsqueeze", votes, one), counted)  # [n, w, K]
    weighted = _weighted(build, totals, answers.is_base, build.op("Unsqueeze", weight, one))
    highest, _ = build.node("TopK", [weighted, two], 2, {"axis": CLASS_AXIS})
    leader, runner_up = (build.op("Gather", highest, build.constant(np.int64(i)), axis=CLASS_AXIS) for i in (0, 1))
    return build.op("Greater", build.op("Sub", leader, runner_up), build.constant(left))


def _none_before(build: GraphBuilder, flags: str) -> str:
    """Whether no earlier member's flag [n, w] is set [n, w]."""
    counts = build.op("Cast", flags, to=TensorProto.INT64)
    before = build.op("CumSum", counts, build.constant(np.int64(1)), exclusive=1)
    return build.op("Equal", before, build.constant(np.int64(0)))


def _any(build: GraphBuilder, flags: str) -> str:
    """Whether any member's flag [n, w] is set [n, 1]."""
    counts = build.op("Cast", flags, to=TensorProto.INT64)
    highest = build.op("ReduceMax", counts, build.constant(np.array([1], dtype=np.int64)), keepdims=1)
    return build.op("Cast", highest, to=TensorProto.BOOL)
