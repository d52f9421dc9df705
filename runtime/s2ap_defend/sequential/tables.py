"""The tables of the defence's decision: the sequential test, and who gives the label.

Members are asked in a fixed order, the first `opening` of them always. The classifier and the jurors of the opening
give a first answer; every member's float32 score against it falls into one of K bins (the number of its edges that are
<= the score), `increments[i, bin]` is added to the log-likelihood ratio L in float64, and the boundaries are tested
after every member: adversarial when L >= upper[i], else clean when L <= lower[i]. Wald's test, weighted members, graded
evidence and calibrated boundaries differ only in these numbers, so one graph and one loop serve all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import numpy as np

from s2ap_defend.types import Bool, Float32, Float64

Evidence = Literal["margin", "surprise"]
Truncation = Literal["sign", "clean", "adversarial", "abstain"]
"""Verdict on inputs that no boundary has decided after all members: 'sign' is 'adversarial' when L > 0."""
Answer = Literal["robust", "mixed", "accurate"]
"""Who gives the label of an input that is not flagged: the jury, classifier and jury mixed, or the classifier."""
Correction = Literal["correct", "keep", "reject"]
"""What a flagged input gets: the vote of the whole jury, the answer of the whole jury, or no label."""
SignalName = Literal["jury margin", "classifier surprise", "reconstruction error"]
"""Evidence that no member has to be asked for."""

FINAL_THRESHOLDS: Mapping[Truncation, float] = MappingProxyType(
    {"sign": 0.0, "clean": math.inf, "adversarial": -math.inf, "abstain": math.inf}
)
"""The `final_threshold` of each truncation."""
WEIGHT_UNIT = 1 / 256
"""Vote weights are multiples of it, so that sums of them are exact."""
AMPLIFICATION_UNIT = 1 / 2
"""Amplifications are multiples of it, so that they are products and square roots, which round alike everywhere."""
LARGEST_AMPLIFICATION = 16


@dataclass(frozen=True)
class Signal:
    """Evidence that costs no member; it is counted in the opening, before that of the members.

    Attributes:
        name: 'jury margin': the mean log-probability of the opening's jurors of the best other label less that of the
            first answer, nats; 'classifier surprise': -log p of the first answer by the classifier, nats;
            'reconstruction error': what the purifier left.
        edges: Ascending float32 bin edges [K - 1], as of a member.
        increments: Log-likelihood increments [K], nats.
    """

    name: SignalName
    edges: Float32
    increments: Float64

    @cached_property
    def increments_of(self) -> "Increments":
        """Those of its scores."""
        return Increments.of(self.edges, self.increments)


@dataclass(frozen=True)
class Increments:
    """Increments of scores by their bins, found by bisection of what scores and edges are below 0.

    So a score that is no number falls into the first bin, as it does where it is compared with every edge.

    Attributes:
        edges: The negative edges, ascending [K - 1].
        increments: In their order [K].
    """

    edges: Float32
    increments: Float64

    @classmethod
    def of(cls, edges: Float32, increments: Float64) -> "Increments":
        """Those of ascending edges [K - 1], an increment for each bin [K]."""
        return cls(np.ascontiguousarray(-edges[::-1]), np.ascontiguousarray(increments[::-1]))

    def at(self, negative: Float32) -> Float64:
        """The increments of scores, given as their negatives [N]."""
        return np.asarray(self.increments.take(self.edges.searchsorted(negative)))


@dataclass(frozen=True)
class SequentialTest:
    """Tables of a decision over n members with K evidence bins.

    Attributes:
        evidence: Member score against the first answer, in nats: 'margin' is max_k log p_k - log p(first answer),
            'surprise' is -log p(first answer).
        edges: Ascending bin edges [n, K - 1]; a score equal to an edge falls into the upper bin.
        increments: Log-likelihood increments [n, K], in nats; positive speaks for 'adversarial'.
        lower: Clean boundary after each member [n]; -inf where 'clean' may not be decided.
        upper: Adversarial boundary after each member [n]; +inf where 'adversarial' may not be decided.
        final_threshold: Rule for inputs undecided after all members: adversarial when L exceeds it.
        waves: Sizes of the groups in which members are evaluated, the opening inside the first; they change speed,
            never a result.
        vote_weights: Weight of each member's vote [n], multiples of 1/256 in [0, 1]; a juror is who has one.
        answer: Who gives the label of an input that is not flagged: 'robust' is the vote of the jurors asked; 'mixed'
            the largest of (1 - jury_share) p_classifier + jury_share q, q the jurors' weighted mean probability to the
            power of `amplification`, normalised (MixedNUTS, arXiv 2402.02263); 'accurate' the classifier's label.
        jury_share: As above, in [0, 1].
        amplification: As above, a multiple of 1/2 above 0, at most 16.
        opening: Members that every input is asked, before anything is decided.
        await_vote: Whether 'clean' also waits until no vote that is left can change or tie the label. Only 'robust'
            may: then the label is that of the whole jury, however few were asked.
        signals: Evidence other than that of members.
        correction: What a flagged input gets: 'correct' the vote of the whole jury, 'keep' the answer of the whole
            jury; 'reject' no label: it abstains, and nobody else is asked.
        curtail: Whether the vote on a flagged input ends as soon as no remaining vote can change or tie its winner.
            That saves members and never changes a label; a mix that answers flagged inputs has no such end.
        undecided_abstains: Whether an input undecided after all members abstains, neither clean nor adversarial;
            final_threshold must be +inf then.

    Raises:
        ValueError: If the tables contradict each other.
    """

    evidence: Evidence
    edges: Float32
    increments: Float64
    lower: Float64
    upper: Float64
    final_threshold: float
    waves: tuple[int, ...]
    vote_weights: Float64
    answer: Answer = "robust"
    jury_share: float = 1.0
    amplification: float = 1.0
    opening: int = 1
    await_vote: bool = False
    signals: tuple[Signal, ...] = ()
    correction: Correction = "correct"
    curtail: bool = True
    undecided_abstains: bool = False

    def __post_init__(self) -> None:
        self._check_evidence()
        self._check_boundaries()
        self._check_votes()

    @property
    def members(self) -> int:
        """Number of members n."""
        return len(self.increments)

    @property
    def closed(self) -> Bool:
        """Members after which nothing is left undecided [n]: the clean boundary is the float below the alarm one."""
        return np.asarray(self.lower == np.nextafter(self.upper, -math.inf))

    @cached_property
    def polls(self) -> bool:
        """Whether the jurors that are left are asked about a flagged input."""
        return self.correction == "correct" or (self.correction == "keep" and self.answer != "accurate")

    @cached_property
    def curtails(self) -> bool:
        """Whether asking them can end before the last."""
        return self.curtail and self.polls and (self.correction == "correct" or self.answer == "robust")

    @cached_property
    def votes_left(self) -> Float64:
        """Weight of the votes that can follow each member's [n]."""
        return np.asarray(self.vote_weights.sum() - np.cumsum(self.vote_weights), dtype=np.float64)

    @cached_property
    def opening_weight(self) -> float:
        """Weight of the votes of the opening."""
        return float(self.vote_weights[: self.opening].sum())

    @cached_property
    def jurors(self) -> list[bool]:
        """Members that vote [n], as truths of Python, which are asked for faster."""
        return [weight > 0.0 for weight in self.vote_weights.tolist()]

    @cached_property
    def boundaries(self) -> list[tuple[float, float]]:
        """Lower and upper boundary after each member [n], as numbers of Python."""
        return list(zip(self.lower.tolist(), self.upper.tolist(), strict=True))

    @cached_property
    def increments_of(self) -> "list[Increments | None]":
        """The increments of each member's scores [n]; None of those whose score says nothing."""
        return [
            Increments.of(edges, increments) if increments.any() else None
            for edges, increments in zip(self.edges, self.increments, strict=True)
        ]

    @cached_property
    def last(self) -> int:
        """Index of the first member behind which nothing is left undecided; `members` where there is none."""
        closed = np.flatnonzero(self.closed)
        return self.members if self.await_vote or not len(closed) else int(closed[0])

    @cached_property
    def sums_logs(self) -> bool:
        """Whether log-probabilities of jurors behind the opening are looked at: they break ties of the vote."""
        return self.answer == "robust" or self.correction == "correct"

    @cached_property
    def counts_each(self) -> bool:
        """Whether votes are looked at after every member."""
        return self.await_vote or self.curtails

    def _check_evidence(self) -> None:
        members, bins = self.increments.shape
        if members < 1 or bins < 2:
            raise ValueError(f"a sequential test needs members and two bins or more, got increments {members}x{bins}")
        if self.edges.shape != (members, bins - 1) or self.edges.dtype != np.float32:
            raise ValueError(f"edges must be float32 {(members, bins - 1)}, got {self.edges.dtype} {self.edges.shape}")
        for signal in self.signals:
            if signal.increments.ndim != 1 or signal.edges.shape != (len(signal.increments) - 1,):
                raise ValueError(f"signal {signal.name!r} needs one increment more than edges, of one dimension each")
        if len({signal.name for signal in self.signals}) < len(self.signals):
            raise ValueError("a signal is named twice")
        tables = [(self.edges, self.increments), *((signal.edges, signal.increments) for signal in self.signals)]
        for edges, increments in tables:
            if not np.isfinite(increments).all() or np.isnan(edges).any():
                raise ValueError("increments must be finite and edges must be numbers")
            if (np.diff(edges, axis=-1) < 0).any():
                raise ValueError("edges must ascend within each member and signal")

    def _check_boundaries(self) -> None:
        members = self.members
        if self.lower.shape != (members,) or self.upper.shape != (members,):
            raise ValueError(f"lower and upper need {members} entries, got {self.lower.shape} and {self.upper.shape}")
        if np.isnan(self.lower).any() or np.isnan(self.upper).any() or (self.lower >= self.upper).any():
            raise ValueError("every lower boundary must lie below its upper boundary")
        if sum(self.waves) != members or min(self.waves, default=0) < 1:
            raise ValueError(f"waves {self.waves} must be positive and sum to {members} members")
        if not 1 <= self.opening <= self.waves[0]:
            raise ValueError(
                f"opening is {self.opening}; it must be 1 to {self.waves[0]}, the members of the first wave"
            )
        before = slice(0, self.opening - 1)
        if np.isfinite(self.lower[before]).any() or np.isfinite(self.upper[before]).any():
            raise ValueError(f"nothing is decided before the {self.opening} members of the opening: no boundary there")
        if math.isnan(self.final_threshold):
            raise ValueError("final_threshold must be a number")
        if self.undecided_abstains and self.final_threshold != math.inf:
            raise ValueError(
                f"final_threshold is {self.final_threshold} although undecided inputs abstain; "
                "set it to inf, or undecided_abstains to False"
            )

    def _check_votes(self) -> None:
        weights = self.vote_weights
        if weights.shape != (self.members,) or weights.dtype != np.float64:
            raise ValueError(f"vote_weights must be float64 {(self.members,)}, got {weights.dtype} {weights.shape}")
        if not ((weights >= 0.0) & (weights <= 1.0) & (weights % WEIGHT_UNIT == 0.0)).all():
            raise ValueError(f"vote_weights must be multiples of 1/256 in [0, 1], got {weights}")
        if self.answer != "accurate" and not weights[: self.opening].any():
            raise ValueError(f"answer {self.answer!r} needs a juror among the {self.opening} members of the opening")
        if self.correction == "correct" and not weights.any():
            raise ValueError("flagged inputs are corrected by a vote, but no member has a vote weight above 0")
        if not 0.0 <= self.jury_share <= 1.0:
            raise ValueError(f"jury_share is {self.jury_share}; expected 0 to 1")
        if not 0.0 < self.amplification <= LARGEST_AMPLIFICATION or self.amplification % AMPLIFICATION_UNIT:
            raise ValueError(f"amplification is {self.amplification}; expected a multiple of 1/2 above 0, at most 16")
        if self.await_vote and self.answer != "robust":
            raise ValueError(f"await_vote is for the answer 'robust', found {self.answer!r}")


def tables_in_graph(test: SequentialTest) -> dict[str, Float32 | Float64]:
    """The tables that a model file's graph holds as initialisers `test/NAME`, by name."""
    found: dict[str, Float32 | Float64] = {
        "edges": test.edges,
        "increments": test.increments,
        "lower": test.lower,
        "upper": test.upper,
        "vote_weights": test.vote_weights,
    }
    if test.answer == "mixed":
        found |= {"jury_share": np.array([test.jury_share])}
    for i, signal in enumerate(test.signals):
        found |= {f"signal_{i}_edges": signal.edges, f"signal_{i}_increments": signal.increments}
    return found
