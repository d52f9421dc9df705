"""One input on its way through the test, in numbers of Python: for one input a call of numpy costs more than its work.

What is computed, and in which order, is the same as for many inputs in arrays. IEEE 754 rounds sums, products,
quotients and square roots of float64 alike everywhere, so every result has the same bits.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate
from operator import mul
from struct import Struct

from s2ap_defend.sequential.jury import LOWEST_LOG, SQUARINGS, TAYLOR
from s2ap_defend.sequential.path import NEAR_TIE
from s2ap_defend.sequential.tables import WEIGHT_UNIT, SequentialTest, SignalName

__all__ = ["LARGEST", "SinglePath", "SingleTables"]

LARGEST = 1e30
"""Log-probabilities are summed and rounded to float32 here only where their sum is within this."""
_NEAR_TIE = float(NEAR_TIE)
_CLEAR = 1e-6
"""Nats by which a network prefers one label clearly: its probabilities, computed to a relative error of 1e-10, do so
too, and so do powers, means and mixes of those that prefer the same."""
_FLOAT32 = Struct("f")
_SCALE = 2.0**-SQUARINGS
_C8, _C7, _C6, _C5, _C4, _C3, _C2, _C1, _C0 = TAYLOR


class SingleTables:
    """The tables of a test as numbers of Python, which are read faster one by one.

    Attributes:
        test: The test.
        edges: Of each member's bins.
        increments: Of each member's bins.
        weights: Of each member's vote.
        left: Weight of the votes that can follow each member's.
        signals: Name, edges and increments of each.
    """

    def __init__(self, test: SequentialTest) -> None:
        self.test = test
        self.edges: list[list[float]] = test.edges.tolist()
        self.increments: list[list[float]] = test.increments.tolist()
        self.weights: list[float] = test.vote_weights.tolist()
        self.left: list[float] = test.votes_left.tolist()
        self.signals: list[tuple[SignalName, list[float], list[float]]] = [
            (one.name, one.edges.tolist(), one.increments.tolist()) for one in test.signals
        ]


class SinglePath:
    """An input whose pixels are all in [0, 1] on its way through the test: evidence, votes and what is decided.

    All log-probabilities are float32 numbers, finite.

    Args:
        tables: Of the test.
        classifier: Log-probabilities of the classifier on what it sees [K].
        opening: Those of the members of the opening [o][K]; their votes are counted at once, their evidence by `scan`.
        reconstruction_error: What the purifier left; None: no signal asks for it.

    Attributes:
        first_answer: The label that the evidence is measured against.
        used: Members asked.
        changed: Those of them that do not agree with the first answer.
        ratio: Log-likelihood ratio, nats.
        decided: Whether a boundary was reached.
        adversarial: Whether it was the alarm boundary.
        settled: Whether the vote on a flagged input is over.
        votes: Weight of the jurors' votes for each class [K].
        summed: Weighted sum of the jurors' log-probabilities [K].

    Raises:
        ValueError: If a signal is the reconstruction error, and that is not given.
    """

    __slots__ = (
        "_agreed", "_classes", "_leader", "_own", "_probable", "_said", "_tables", "_test", "_weight", "adversarial",
        "changed", "classifier", "decided", "first_answer", "ratio", "settled", "summed", "used", "votes",
    )  # fmt: skip

    def __init__(
        self,
        tables: SingleTables,
        classifier: Sequence[float],
        opening: Sequence[Sequence[float]],
        *,
        reconstruction_error: float | None = None,
    ) -> None:
        test = tables.test
        self._tables, self._test, self.classifier = tables, test, classifier
        self.used = self.changed = 0
        self.decided = self.adversarial = self.settled = False
        self.ratio = self._weight = 0.0
        classes = len(classifier)
        self._classes = range(classes)
        self.votes, self.summed = [0.0] * classes, [0.0] * classes
        self._probable, self._said = [0.0] * classes, list[tuple[float, Sequence[float]]]()
        self._own: list[float] | None = None
        self._leader = _argmax(classifier)
        self._agreed = _is_clear(classifier)
        for i, logs in enumerate(opening):
            if test.jurors[i]:
                self._vote(i, logs)
        self.first_answer = self._label()
        for name, edges, increments in tables.signals:
            self.ratio += increments[bisect_right(edges, self._signal(name, reconstruction_error))]

    def scan(self, first: int, logs: Sequence[Sequence[float] | None]) -> None:
        """Ask members one after the other.

        Args:
            first: Index of the first of them; 0, and all of the opening, the first time.
            logs: Log-probabilities of each [K]; None of those that do not ask this input.
        """
        test, tables, answer = self._test, self._tables, self.first_answer
        surprise = test.evidence == "surprise"
        for i, said in enumerate(logs, start=first):
            undecided, opening, votes = not self.decided, i < test.opening, test.jurors[i]
            more = votes and test.polls and self.adversarial and not self.settled
            if said is None or not (opening or undecided or more):
                continue
            of_answer = said[answer]
            (margin,) = _FLOAT32.unpack(_FLOAT32.pack(max(said) - of_answer))
            self.used += 1
            self.changed += margin >= _NEAR_TIE
            if votes and not opening:
                self._vote(i, said)
            if undecided:
                score = -of_answer if surprise else margin
                self.ratio += tables.increments[i][bisect_right(tables.edges[i], score)]
                if i >= test.opening - 1:
                    self._decide(i)
            if test.curtails and self.adversarial and not self.settled:
                self.settled = self._is_settled(i)

    def waits(self, first: int, size: int) -> bool:
        """Whether one of some members asks it: while it is undecided, or flagged and its vote goes on among them."""
        if not self.decided:
            return True
        test = self._test
        if not test.polls or not self.adversarial or self.settled:
            return False
        return any(test.jurors[max(first, test.opening) : first + size])

    def verdict(self) -> tuple[int, bool, bool]:
        """(label, adversarial, abstained) by the final rule, once nobody asks any more."""
        test, undecided = self._test, not self.decided
        adversarial = self.adversarial or (undecided and self.ratio > test.final_threshold)
        abstained = (adversarial and test.correction == "reject") or (undecided and test.undecided_abstains)
        label = self.first_answer
        if adversarial and test.correction == "correct":
            label = self._voted()
        elif self.used > test.opening and test.answer != "accurate":
            label = self._label()
        return label, adversarial, abstained

    @property
    def base_label(self) -> int:
        """The classifier's own label."""
        return _argmax(self.classifier)

    @property
    def label_change_rate(self) -> float:
        """Share of the asked members that do not agree with the first answer."""
        return self.changed / self.used

    def _vote(self, member: int, logs: Sequence[float]) -> None:
        weight = self._tables.weights[member]
        self._weight += weight
        label = _argmax(logs)
        self.votes[label] += weight
        self.summed = [total + weight * log for total, log in zip(self.summed, logs, strict=True)]
        if self._test.answer == "mixed":
            self._said.append((weight, logs))
            self._agreed = self._agreed and label == self._leader and _is_clear(logs)

    def _decide(self, member: int) -> None:
        lower, upper = self._test.boundaries[member]
        if self.ratio >= upper < math.inf:
            self.decided = self.adversarial = True
        elif self.ratio <= lower > -math.inf:
            self.decided = not self._test.await_vote or self._is_settled(member)

    def _is_settled(self, member: int) -> bool:
        """Whether no vote behind this member's can change or tie the winner."""
        leader, runner_up = sorted(self.votes, reverse=True)[:2]
        return leader - runner_up > self._tables.left[member]

    def _label(self) -> int:
        """The answer of the classifier and the jurors asked so far, were nothing flagged."""
        test = self._test
        if test.answer == "accurate":
            return _argmax(self.classifier)
        if test.answer == "robust":
            return self._voted()
        return self._leader if self._agreed else self._mixed()  # what all prefer leads in every mix of them

    def _mixed(self) -> int:
        """The label that leads in the mix."""
        test = self._test
        for vote, logs in self._said:
            self._probable = [total + vote * one for total, one in zip(self._probable, _exponential(logs), strict=True)]
        self._said.clear()
        weight, share, power = self._weight, test.jury_share, int(test.amplification)
        means = [one / weight for one in self._probable]
        if test.amplification % 1 > 0:
            amplified = [reduce(mul, [one] * power + [math.sqrt(one)]) for one in means]
        else:
            amplified = means
            for _ in range(power - 1):
                amplified = list(map(mul, amplified, means))
        *_, total = accumulate(amplified)  # sum() of later Pythons rounds otherwise
        if share == 1.0:
            return _argmax([one / total for one in amplified])
        if self._own is None:
            self._own = _exponential(self.classifier)
        return _argmax(
            [(1.0 - share) * own + share * (one / total) for own, one in zip(self._own, amplified, strict=True)]
        )

    def _voted(self) -> int:
        """Label with the largest weight of votes; ties go to the higher sum, then to the lower class index."""
        most = max(self.votes)
        if self.votes.count(most) == 1:
            return self.votes.index(most)
        return max((k for k in self._classes if self.votes[k] == most), key=self.summed.__getitem__)

    def _signal(self, name: SignalName, reconstruction_error: float | None) -> float:
        answer = self.first_answer
        match name:
            case "jury margin":
                weight = max(self._test.opening_weight, WEIGHT_UNIT)
                means = [one / weight for one in self.summed]
                of_answer, means[answer] = means[answer], -math.inf
                (margin,) = _FLOAT32.unpack(_FLOAT32.pack(max(means) - of_answer))
                return float(margin)
            case "classifier surprise":
                return -self.classifier[answer]
            case _:
                if reconstruction_error is None:
                    raise ValueError("the test counts the reconstruction error, which is not given")
                return reconstruction_error


def _argmax(values: Sequence[float]) -> int:
    return values.index(max(values))


def _is_clear(logs: Sequence[float]) -> bool:
    """Whether one label is preferred clearly, and its probability is one and not cut off."""
    *_, second, most = sorted(logs)
    return most - second > _CLEAR and LOWEST_LOG + 1.0 < most <= 0.0


def _exponential(logs: Sequence[float]) -> list[float]:
    """Probabilities of log-probabilities, all operations written out: a loop over them takes half as long again."""
    found = []
    for log in logs:
        x = (log if log > LOWEST_LOG else LOWEST_LOG) * _SCALE
        value = (((((((x * _C8 + _C7) * x + _C6) * x + _C5) * x + _C4) * x + _C3) * x + _C2) * x + _C1) * x + _C0
        for _ in range(SQUARINGS):
            value *= value
        found.append(value)
    return found
