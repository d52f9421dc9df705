"""The sequential test as graph: one wave of members, and the decision at the end.

`s2ap_defend.sequential.run_sequential_test` is the reference; these nodes equal it exactly. It loops over members; here
a wave is computed at once. Prefix sums of the increments, from the log-likelihood ratio before the wave, are the ratios
after every member: CumSum adds in the order of the loop, so they agree to the last bit. A member counts as long as no
boundary was crossed before it. Votes likewise: who is asked for one is always a prefix of the wave's jurors, so that
prefix sums as if all were asked hold the tally of every row. What a row carries from wave to wave is one row of float64
numbers, the flags 0 or 1:

    ratio | decided | adversarial | settled | members used | labels changed | tally (s2ap_export.graph.jury)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from s2ap_defend.sequential import SequentialTest
from s2ap_export.graph.answers import CLASS_AXIS, Tables, read_answers
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.jury import VOTES, answer_label, jurors, tally_parts, tally_rows, voted_label

__all__ = ["FLAGS", "Decision", "decide", "flag", "scan_wave", "split_tally", "state_size", "waiting_rows"]

FLAGS = ("decided", "adversarial", "settled", "used", "changed")
"""Columns of the state behind the ratio and before the tally."""


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


def state_size(test: SequentialTest, classes: int) -> int:
    """Numbers that a row carries from wave to wave."""
    return 1 + len(FLAGS) + len(tally_parts(test)) * classes


def split_tally(build: GraphBuilder, test: SequentialTest, tally: str, classes: int) -> dict[str, str]:
    """The parts of a tally [n, C] by name, [n, K] each."""
    names = tally_parts(test)
    if len(names) == 1:
        return {names[0]: tally}
    sizes = build.integers(*[classes] * len(names))
    return dict(zip(names, build.node("Split", [tally, sizes], len(names), {"axis": 1}), strict=True))


def scan_wave(
    build: GraphBuilder,
    test: SequentialTest,
    tables: Tables,
    first: int,
    log_probabilities: list[str],
    first_answer: str,
    state: str,
    classes: int,
) -> str:
    """The state after a wave.

    Args:
        build: The graph that the wave is in.
        test: Its evidence and votes; its tables are read from the graph.
        tables: Where the tables are.
        first: Index of the wave's first member. The first wave holds the opening, whose votes are counted already.
        log_probabilities: Of each member of the wave, float32 [n, K].
        first_answer: int64 [n].
        state: float64 [n, S] before the wave; every row is one that a member of it asks.
        classes: Number of classes K.
    """
    size = len(log_probabilities)
    one, along = build.integers(1), build.constant(np.int64(1))
    evidence = read_answers(build, test, tables, first, log_probabilities, first_answer, classes)
    ratio, _, flagged, settled, used, changed, tally = _unpack(build, state, state_size(test, classes))
    adversarial = build.op("Cast", flagged, to=TensorProto.BOOL)  # or undecided: others are not asked
    voting = jurors(test, max(first, test.opening), first + size)
    tallies = build.op("Unsqueeze", tally, one)  # [n, j + 1, C]: before the first juror, after each
    if voting:
        rows = tally_rows(build, test, voting, [log_probabilities[i - first] for i in voting], classes)
        tallies = build.op("CumSum", build.op("Concat", tallies, rows, axis=1), along)

    track = build.op("CumSum", build.op("Concat", ratio, evidence.increments, axis=1), along)  # [n, w + 1]
    after = build.op("Slice", track, one, build.integers(size + 1), one)  # [n, w]
    crosses = build.op("GreaterOrEqual", after, tables.upper)
    clean = build.op("LessOrEqual", after, tables.lower)
    curtails = test.correct and test.curtail and test.votes_left[max(first, test.opening - 1)] > 0.0
    if curtails or test.await_vote:
        won = _is_settled(build, test, first, size, voting, tallies, classes)
        clean = build.op("And", clean, won) if test.await_vote else clean
    stops = build.op("Or", crosses, clean)
    open_ = build.op("And", _none_before(build, stops), build.op("Not", adversarial))  # [n, w]: undecided when asked

    steps = build.op("ReduceSum", build.op("Cast", open_, to=TensorProto.INT64), one, keepdims=1)
    ratio = build.op("GatherElements", track, steps, axis=1)
    decided = build.op("Or", adversarial, _any(build, build.op("And", open_, stops)))
    adversarial = build.op("Or", adversarial, _any(build, build.op("And", open_, crosses)))
    asked = open_
    if test.correct and voting:
        votes_on = build.constant(np.isin(np.arange(first, first + size), voting))
        asked = build.op("Or", open_, build.op("And", adversarial, votes_on))
    if curtails:
        voted_on = build.op("Or", build.op("Not", open_), crosses)  # or clean, and then nobody is asked for a vote
        settles = build.op("And", voted_on, won)
        settled = build.op("Cast", _any(build, settles), to=TensorProto.DOUBLE)  # it was not, or nobody would ask
        asked = build.op("And", asked, _none_before(build, settles)) if voting else asked
    if first < test.opening:
        asked = build.op("Or", asked, build.constant(np.arange(first, first + size) < test.opening))

    used = build.op("Add", used, _count(build, asked, TensorProto.DOUBLE))
    changed = build.op("Add", changed, _count(build, build.op("And", asked, evidence.changes), TensorProto.DOUBLE))
    if voting:
        if len(voting) < size:
            asked = build.op("Gather", asked, build.integers(*(i - first for i in voting)), axis=1)
        tally = build.op("GatherND", tallies, _count(build, asked, TensorProto.INT64), batch_dims=1)
    flags = [build.op("Cast", value, to=TensorProto.DOUBLE) for value in (decided, adversarial)]
    return build.op("Concat", ratio, *flags, settled, used, changed, tally, axis=1)


def flag(build: GraphBuilder, state: str, name: str) -> str:
    """A flag of all rows, bool [n]."""
    column = build.op("Gather", state, build.constant(np.int64(1 + FLAGS.index(name))), axis=1)
    return build.op("Cast", column, to=TensorProto.BOOL)


def waiting_rows(build: GraphBuilder, test: SequentialTest, first: int, size: int, state: str) -> str:
    """Rows [n] that some of `size` members from `first` on ask: undecided ones, and flagged ones whose vote goes on."""
    undecided = build.op("Not", flag(build, state, "decided"))
    if not test.correct or not jurors(test, first, first + size):
        return undecided
    votes_on = flag(build, state, "adversarial")
    if test.curtail:
        votes_on = build.op("And", votes_on, build.op("Not", flag(build, state, "settled")))
    return build.op("Or", undecided, votes_on)


def decide(
    build: GraphBuilder, test: SequentialTest, state: str, classifier: str, finite: str, classes: int
) -> Decision:
    """The final rule and the label, from the state [N, S] after the last wave.

    Args:
        build: The graph.
        test: The decision.
        state: float64 [N, S].
        classifier: Log-probabilities of the classifier, float32 [N, K].
        finite: Images whose pixels are all finite, bool [N, 1].
        classes: Number of classes K.
    """
    flat = build.integers(-1)
    *columns, tally = _unpack(build, state, state_size(test, classes))
    ratio, decided, adversarial, _, used, changed = (build.op("Reshape", value, flat) for value in columns)
    decided, adversarial = (build.op("Cast", value, to=TensorProto.BOOL) for value in (decided, adversarial))
    undecided = build.op("Not", decided)
    above = build.op("Greater", ratio, build.constant(np.float64(test.final_threshold), "final_threshold"))
    adversarial = build.op("Or", adversarial, build.op("And", undecided, above))
    abstained = build.op("Not", build.op("Reshape", finite, flat))
    if not test.correct:
        abstained = adversarial  # what is not finite is among it
    if test.undecided_abstains:
        abstained = build.op("Or", abstained, undecided)

    parts = split_tally(build, test, tally, classes)
    label = answer_label(build, test, classifier, parts)
    if test.correct and test.answer != "robust":
        label = build.op("Where", adversarial, voted_label(build, parts), label)
    return Decision(
        label=label,
        adversarial=adversarial,
        label_change_rate=build.op("Cast", build.op("Div", changed, used), to=TensorProto.FLOAT),
        log_likelihood_ratio=ratio,
        members_used=build.op("Cast", used, to=TensorProto.INT64),
        votes=parts[VOTES],
        abstained=abstained,
    )


def _unpack(build: GraphBuilder, state: str, columns: int) -> tuple[str, ...]:
    """The parts of the state: ratio and flags [n, 1], tally [n, C]."""
    single = 1 + len(FLAGS)
    sizes = build.integers(*[1] * single, columns - single)
    return build.node("Split", [state, sizes], single + 1, {"axis": 1})


def _is_settled(
    build: GraphBuilder, test: SequentialTest, first: int, size: int, voting: list[int], tallies: str, classes: int
) -> str:
    """Where no vote behind a member's can change or tie the winner, were all before it asked [n, w]."""
    votes = tallies  # [n, j + 1, C]
    if len(tally_parts(test)) > 1:
        votes = build.op("Slice", votes, build.integers(0), build.integers(classes), build.integers(CLASS_AXIS))
    counted = [sum(juror <= i for juror in voting) for i in range(first, first + size)]
    votes = build.op("Gather", votes, build.integers(*counted), axis=1)  # [n, w, K]
    highest, _ = build.node("TopK", [votes, build.integers(2)], 2, {"axis": CLASS_AXIS})
    leader, runner_up = (build.op("Gather", highest, build.constant(np.int64(i)), axis=CLASS_AXIS) for i in (0, 1))
    left = build.constant(test.votes_left[first : first + size])
    return build.op("Greater", build.op("Sub", leader, runner_up), left)


def _none_before(build: GraphBuilder, flags: str) -> str:
    """Whether no earlier member's flag [n, w] is set [n, w]."""
    counts = build.op("Cast", flags, to=TensorProto.INT64)
    before = build.op("CumSum", counts, build.constant(np.int64(1)), exclusive=1)
    return build.op("Equal", before, build.constant(np.int64(0)))


def _any(build: GraphBuilder, flags: str) -> str:
    """Whether any member's flag [n, w] is set [n, 1]."""
    counts = build.op("Cast", flags, to=TensorProto.INT64)
    highest = build.op("ReduceMax", counts, build.integers(1), keepdims=1)
    return build.op("Cast", highest, to=TensorProto.BOOL)


def _count(build: GraphBuilder, flags: str, element: int) -> str:
    """How many members' flags [n, w] are set [n, 1]."""
    return build.op("ReduceSum", build.op("Cast", flags, to=element), build.integers(1), keepdims=1)
