"""A wave of members as graph: where each row stops, and what the members that it asks add to its sums.

`s2ap_defend.sequential.run_sequential_test` is the reference; these nodes equal it exactly. It loops over members; here
a wave is computed at once, on values [rows, members of the wave, numbers]. Prefix sums of the increments, from the
log-likelihood ratio before the wave, are the ratios before it and after every member: CumSum adds in the order of the
loop, so they agree to the last bit. A row stops at the first of these places where a boundary is crossed; what it is
there, it stays. A vote ends at the first place from there on at which it is settled. So place and end are two numbers
a row, and it asks the members whose index lies below. Between waves a row carries one row of float64 numbers:

    ratio | verdict | first answer | members that do not agree | members asked | what the jury keeps

with the verdict as a number that says what is left to do: the higher, the more members the row asks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from s2ap_defend.sequential import SequentialTest
from s2ap_defend.types import Bool, Float64
from s2ap_export.graph.answers import Evidence, Tables
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.jury import COUNTS, Ballots, JuryLayout, settled

__all__ = [
    "State",
    "Stops",
    "Wave",
    "added_rows",
    "counts_of",
    "pack",
    "state_size",
    "stops_of",
    "sums_of",
    "unpack",
    "waits",
]

UNDECIDED, FLAGGED_IN_VOTE, CLEAN, FLAGGED = 2.0, 1.0, 0.0, -1.0
"""Verdicts: every member is asked; jurors are; nobody is; nobody is, the vote is over or there is none."""


@dataclass(frozen=True)
class State:
    """Names of what n rows carry.

    Attributes:
        ratio: float64 [n, 1, 1], the log-likelihood ratio.
        verdict: float64 [n, 1, 1], one of the four above.
        first: float64 [n, 1, 1], the first answer.
        sums: float64 [n, 1, S], of the members asked.
    """

    ratio: str
    verdict: str
    first: str
    sums: str


@dataclass(frozen=True)
class Stops:
    """Where n rows stop in a wave.

    Attributes:
        ratio: float64 [n, 1, 1], after it.
        verdict: float64 [n, 1, 1], after it.
        limit: int64 [n, 1, 1] or [n, w, 1]: the row asks the members whose index in the wave is lower, and the opening.
    """

    ratio: str
    verdict: str
    limit: str


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
    def jurors(self) -> Bool:
        """Its members that have a vote [w]."""
        return np.asarray((self.test.vote_weights > 0)[self.members])

    @property
    def opening(self) -> Bool:
        """Its members that belong to the opening [w]."""
        return np.arange(self.test.members)[self.members] < self.test.opening

    @property
    def voting(self) -> Bool:
        """Jurors among its members that are asked for the vote on flagged rows [w]; the opening has voted before."""
        return self.jurors & ~self.opening & self.test.polls

    @property
    def ends_votes(self) -> bool:
        """Whether the vote on a flagged row can end in it, before its last juror."""
        behind = self.test.vote_weights[max(self.first + 1, self.test.opening) :]
        return self.test.curtails and bool(behind.any())

    @property
    def left(self) -> Float64:
        """Weight of the votes that can follow, before it (no vote ends there) and after each member [w + 1]."""
        return np.concatenate([[np.inf], self.test.votes_left[self.members]])

    @property
    def asks_above(self) -> float:
        """Rows ask a member of it whose verdict exceeds this."""
        return CLEAN if self.voting.any() else FLAGGED_IN_VOTE


def state_size(layout: JuryLayout) -> int:
    """Numbers that a row carries from wave to wave."""
    return 3 + layout.columns


def stops_of(
    build: GraphBuilder, wave: Wave, evidence: Evidence, votes: str, ballots: str, ratio: str, verdict: str
) -> Stops:
    """Where rows stop in a wave.

    Args:
        build: The graph that the wave is in.
        wave: The wave.
        evidence: Of its members.
        votes: float64 [n, 1, K], weight of the votes before it; may be empty where no vote can be settled.
        ballots: float64 [n, w, K], votes of its members behind the opening; empty where there are none.
        ratio: float64 [n, 1, 1], before it.
        verdict: float64 [n, 1, 1], before it.
    """
    test, size = wave.test, wave.size
    members, everyone = build.constant(np.array([1], dtype=np.int64)), build.constant(np.int64(size))
    order = build.constant(np.arange(size + 1, dtype=np.int64)[:, None])
    clean_code, undecided, in_vote, over = (
        build.constant(np.float64(code)) for code in (CLEAN, UNDECIDED, FLAGGED_IN_VOTE, FLAGGED)
    )
    track = build.op("Concat", ratio, evidence.increments, axis=1)
    track = build.op("CumSum", track, build.constant(np.int64(1)))  # [n, w + 1, 1]
    clean = build.op("LessOrEqual", track, wave.tables.lower)
    enough = ""
    if test.await_vote or wave.ends_votes:
        enough = settled(build, votes, ballots, wave.left)
    if test.await_vote:
        clean = build.op("And", clean, enough)
    code = build.op("Where", clean, clean_code, verdict)
    flagged = in_vote if test.polls else over
    code = build.op("Where", build.op("GreaterOrEqual", track, wave.tables.upper), flagged, code)
    place = build.op("Where", build.op("Equal", code, undecided), everyone, order)
    place = build.op("ReduceMin", place, members, keepdims=1)  # the members asked until it was decided
    ratio, verdict = (build.op("GatherElements", values, place, axis=1) for values in (track, code))

    limit = place
    if wave.voting.any() or wave.ends_votes:
        votes_on, end = build.op("Equal", verdict, in_vote), everyone
        if wave.ends_votes:
            ends = build.op("And", enough, build.op("GreaterOrEqual", order, place))
            end = build.op("Where", ends, order, build.constant(np.int64(size + 1)))
            end = build.op("ReduceMin", end, members, keepdims=1)
            ended = build.op("And", votes_on, build.op("LessOrEqual", end, everyone))
            verdict = build.op("Where", ended, over, verdict)
        if wave.voting.any():
            limit = build.op("Where", votes_on, end, place)
            if not wave.voting.all():
                limit = build.op("Where", build.constant(wave.voting[:, None]), limit, place)
    return Stops(ratio, verdict, limit)


def counts_of(build: GraphBuilder, evidence: Evidence, more: int = 0) -> str:
    """Of each member of a wave: whether it does not agree, and 1 for that it is asked, and zeros [n, w, 2 + more]."""
    columns = (build.constant(np.array([*counts, *[0.0] * more])) for counts in ([1.0, 1.0], [0.0, 1.0]))
    return build.op("Where", evidence.changes, *columns)


def added_rows(build: GraphBuilder, wave: Wave, evidence: Evidence, ballots: Ballots | None) -> str:
    """What each member of a wave adds to the sums of the rows that ask it, float64 [n, w, S]."""
    if ballots:
        return build.op("Concat", counts_of(build, evidence), ballots.rows, axis=-1)
    return counts_of(build, evidence, wave.layout.columns - COUNTS)


def sums_of(build: GraphBuilder, wave: Wave, limit: str, added: str, before: str) -> str:
    """The sums of rows after a wave [n, 1, S], added in the order of the loop, which a sum need not keep.

    Args:
        build: The graph that the wave is in.
        wave: The wave.
        limit: As in `Stops`.
        added: float64 [n, w, S].
        before: float64 [n, 1, S]; empty before the first wave.
    """
    index = np.where(wave.opening, -1, np.arange(wave.size))  # every row asks the opening
    asked = build.op("Less", build.constant(index[:, None]), limit)
    added = build.op("Where", asked, added, build.constant(np.float64(0)))
    last = wave.size - 1
    if before:
        added, last = build.op("Concat", before, added, axis=1), wave.size
    added = build.op("CumSum", added, build.constant(np.int64(1)))
    return build.op("Gather", added, build.constant(np.array([last], dtype=np.int64)), axis=1)


def waits(build: GraphBuilder, wave: Wave, verdict: str) -> str:
    """Whether any row asks a member of a wave, one bool, by verdicts [n, 1, 1] before it."""
    return build.op("Greater", build.op("ReduceMax", verdict, keepdims=0), build.constant(np.float64(wave.asks_above)))


def pack(build: GraphBuilder, state: State) -> str:
    """The state as one value [n, 1, 3 + S]."""
    return build.op("Concat", state.ratio, state.verdict, state.first, state.sums, axis=-1)


def unpack(build: GraphBuilder, layout: JuryLayout, packed: str) -> State:
    """What `pack` joined; of a value [n, 3 + S] parts of two dimensions."""
    sizes = build.constant(np.array([1, 1, 1, layout.columns], dtype=np.int64))
    return State(*build.node("Split", [packed, sizes], 4, {"axis": -1}))
