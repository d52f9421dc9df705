"""The sequential test as graph: the opening, one wave of members, and the decision at the end.

`s2ap_defend.sequential.run_sequential_test` is the reference; these nodes equal it exactly. It loops over members; here
a wave is computed at once. Prefix sums of the increments, from the log-likelihood ratio before the wave, are the ratios
after every member: CumSum adds in the order of the loop, so they agree to the last bit. A member counts as long as no
boundary was crossed before it. Curtailment likewise: prefix sums of the votes as if the vote went on are right up to
the member that settles it, and members after that one do not count. Between waves a row carries one row of float64
numbers, the flags 0 or 1:

    ratio | decided | adversarial | settled | asked that agree | asked that do not | what the jury keeps
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from s2ap_defend.sequential import SequentialTest
from s2ap_defend.types import Bool
from s2ap_export.graph.answers import Evidence, Tables
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.jury import Ballots, JuryLayout, settled

__all__ = ["State", "Wave", "initial_state", "pack", "scan_wave", "state_size", "unpack", "waiting_rows"]


@dataclass(frozen=True)
class State:
    """Names of what n rows carry.

    Attributes:
        ratio: float64 [n, 1], the log-likelihood ratio.
        decided: bool [n, 1].
        adversarial: bool [n, 1].
        settled: bool [n, 1], whether the vote on a flagged row is over; empty where no vote ends early.
        counts: float64 [n, 2], members asked that agree with the first answer, and that do not.
        jury: float64 [n, J]; empty where nobody votes.
    """

    ratio: str
    decided: str
    adversarial: str
    settled: str
    counts: str
    jury: str


@dataclass(frozen=True)
class Wave:
    """A wave of members as the test sees it.

    Attributes:
        test: The test; its tables are read from the graph.
        layout: What the jury keeps.
        tables: The wave's tables in the graph.
        first: Index of its first member.
        size: Its members w.
    """

    test: SequentialTest
    layout: JuryLayout
    tables: Tables
    first: int
    size: int

    @property
    def members(self) -> slice:
        """Its members among all."""
        return slice(self.first, self.first + self.size)

    @property
    def voting(self) -> Bool:
        """Jurors among its members whose votes are not counted in the opening [w]."""
        return np.asarray((self.test.vote_weights > 0)[self.members] & ~self.opening)

    @property
    def opening(self) -> Bool:
        """Its members that belong to the opening [w]."""
        return np.arange(self.test.members)[self.members] < self.test.opening


def ends_votes(test: SequentialTest) -> bool:
    """Whether the vote on a flagged row can end before its last juror."""
    return test.correct and test.curtail and bool(test.vote_weights[test.opening :].any())


def state_size(test: SequentialTest, layout: JuryLayout) -> int:
    """Numbers that a row carries from wave to wave."""
    return sum(_sizes(test, layout))


def initial_state(build: GraphBuilder, test: SequentialTest, valid: str, ratio: str, jury: str) -> State:
    """The state before the first member.

    Args:
        build: The main graph.
        test: The test.
        valid: bool [N, 1]; rows that are not are flagged.
        ratio: float64 [N, 1], that of the signals; empty: zero.
        jury: float64 [N, J], after the votes of the opening.
    """
    flagged = build.op("Not", valid)
    zero = build.op("Where", flagged, build.constant(np.zeros(1)), build.constant(np.zeros(1)))
    never = build.op("And", flagged, valid) if ends_votes(test) else ""
    none = build.op("Where", flagged, build.constant(np.zeros(2)), build.constant(np.zeros(2)))
    return State(ratio or zero, flagged, flagged, never, none, jury)


def scan_wave(build: GraphBuilder, wave: Wave, evidence: Evidence, ballots: Ballots | None, state: State) -> State:
    """The state after a wave.

    Args:
        build: The graph that the wave is in.
        wave: The wave.
        evidence: Of its members.
        ballots: Of its jurors behind the opening; None: there are none.
        state: Before the wave; every row is one that a member of it asks.
    """
    test, size = wave.test, wave.size
    one, two = (build.constant(np.array([i], dtype=np.int64)) for i in (1, 2))
    track = build.op("Concat", state.ratio, evidence.increments, axis=1)
    track = build.op("CumSum", track, build.constant(np.int64(1)))  # [n, w + 1]
    after = build.op("Slice", track, one, build.constant(np.array([size + 1], dtype=np.int64)), one)  # [n, w]
    upper = build.op("GreaterOrEqual", after, wave.tables.upper)
    clean = build.op("LessOrEqual", after, wave.tables.lower)

    curtails = test.correct and test.curtail and bool(test.vote_weights[max(wave.first + 1, test.opening) :].any())
    enough = ""
    if test.await_vote or curtails:
        votes = wave.layout.split(build, state.jury)["votes"]
        enough = settled(build, votes, ballots.votes if ballots else "", test.votes_left[wave.members])
    if test.await_vote:
        clean = build.op("And", clean, enough)
    stops = build.op("Or", upper, clean)
    open_ = build.op("And", _none_before(build, stops), build.op("Not", state.decided))  # undecided when asked

    steps = build.op("ReduceSum", build.op("Cast", open_, to=TensorProto.INT64), one, keepdims=1)
    ratio = build.op("GatherElements", track, steps, axis=1)
    adversarial = build.op("Or", state.adversarial, _any(build, build.op("And", open_, upper)))
    decided = build.op("Or", state.decided, _any(build, build.op("And", open_, stops)))

    asked, over = open_, state.settled
    if test.correct and wave.voting.any():
        asked = build.op("Or", asked, build.op("And", adversarial, build.constant(wave.voting)))
    if curtails:
        voted_on = build.op("Or", build.op("Not", open_), upper)  # or clean, and then nobody is asked for a vote
        ends = build.op("And", voted_on, enough)
        asked = build.op("And", asked, _none_before(build, ends))
        over = _any(build, ends)  # it was not, or nobody would ask
    if wave.opening.any():
        asked = build.op("Or", asked, build.constant(wave.opening))

    columns = build.constant(np.array([0.0, 1.0])), build.constant(np.array([1.0, 0.0]))
    added = build.op("Where", evidence.changes, *columns)  # [n, w, 2]
    if ballots:
        added = build.op("Concat", added, ballots.rows, axis=2)
    before = build.op("Concat", state.counts, state.jury, axis=1) if ballots else state.counts
    added = build.op("Where", build.op("Unsqueeze", asked, two), added, build.constant(np.float64(0)))
    sums = build.op("Concat", build.op("Unsqueeze", before, one), added, axis=1)
    sums = build.op("CumSum", sums, build.constant(np.int64(1)))  # in the order of the loop, which a sum need not keep
    sums = build.op("Gather", sums, build.constant(np.int64(size)), axis=1)
    counts, jury = sums, state.jury
    if ballots:
        parts = build.constant(np.array([2, wave.layout.columns], dtype=np.int64))
        counts, jury = build.node("Split", [sums, parts], 2, {"axis": 1})
    return State(ratio, decided, adversarial, over, counts, jury)


def waiting_rows(build: GraphBuilder, wave: Wave, state: State) -> str:
    """Rows [n, 1] that a member of a wave asks: undecided ones, and flagged ones whose vote goes on in it."""
    waiting = build.op("Not", state.decided)
    if not wave.test.correct or not wave.voting.any():
        return waiting
    votes = state.adversarial
    if state.settled:
        votes = build.op("And", votes, build.op("Not", state.settled))
    return build.op("Or", waiting, votes)


def pack(build: GraphBuilder, state: State) -> str:
    """The state as one value [n, S]."""
    flags = [flag for flag in (state.decided, state.adversarial, state.settled) if flag]
    numbers = [build.op("Cast", flag, to=TensorProto.DOUBLE) for flag in flags]
    return build.op("Concat", state.ratio, *numbers, state.counts, *([state.jury] if state.jury else []), axis=1)


def unpack(build: GraphBuilder, test: SequentialTest, layout: JuryLayout, packed: str) -> State:
    """What `pack` joined."""
    sizes = _sizes(test, layout)
    parts = build.node("Split", [packed, build.constant(np.array(sizes, dtype=np.int64))], len(sizes), {"axis": 1})
    count = 3 if ends_votes(test) else 2
    flags = [build.op("Cast", part, to=TensorProto.BOOL) for part in parts[1 : 1 + count]]
    ends, (counts, *jury) = flags[2] if count == 3 else "", parts[1 + count :]
    return State(parts[0], flags[0], flags[1], ends, counts, jury[0] if jury else "")


def _sizes(test: SequentialTest, layout: JuryLayout) -> list[int]:
    return [1] * (4 if ends_votes(test) else 3) + [2] + ([layout.columns] if layout.columns else [])


def _none_before(build: GraphBuilder, flags: str) -> str:
    """Whether no earlier member's flag [n, w] is set [n, w]."""
    counts = build.op("Cast", flags, to=TensorProto.INT64)
    before = build.op("CumSum", counts, build.constant(np.int64(1)), exclusive=1)
    return build.op("Equal", before, build.constant(np.int64(0)))


def _any(build: GraphBuilder, flags: str) -> str:
    """Whether any member's flag [n, w] is set [n, 1]."""
    return build.op("ReduceMax", flags, build.constant(np.array([1], dtype=np.int64)), keepdims=1)
