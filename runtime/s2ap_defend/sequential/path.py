"""Evidence and votes as members are asked: the loop that the numpy reference and the staged executor share."""

from collections.abc import Sequence
from copy import copy
from typing import Self

import numpy as np

from s2ap_defend.sequential.ballots import Ballots, by_class
from s2ap_defend.sequential.jury import settled
from s2ap_defend.sequential.tables import WEIGHT_UNIT, Evidence, SequentialTest, SignalName
from s2ap_defend.types import Bool, Float32, Float64, Int64

__all__ = ["NEAR_TIE", "Path", "member_scores"]

NEAR_TIE = np.float32(1e-4)
"""A member whose top log-probability exceeds that of a label by less than this agrees with the label."""

_ROWS = ("classifier", "first_answer", "used", "changed", "ratio", "decided", "adversarial", "settled")
"""What has inputs in its only or first dimension."""


def member_scores(evidence: Evidence, log_probabilities: Float32, label: Int64) -> Float32:
    """Scores of members against labels, in nats, shape [..., N].

    Args:
        evidence: 'margin' or 'surprise', as in SequentialTest.
        log_probabilities: Member log-probabilities [..., N, K].
        label: Labels [N].
    """
    of_label = _taken(log_probabilities, _places(log_probabilities, label))
    if evidence == "surprise":
        return np.asarray(-of_label, dtype=np.float32)
    return np.asarray(log_probabilities.max(axis=-1) - of_label, dtype=np.float32)


class Path:
    """N inputs on their way through the test: evidence, votes and what is decided.

    Args:
        test: The tables.
        classifier: Log-probabilities of the classifier on what it sees [N, K].
        opening: Those of the members of the opening [o, N, K]; their votes are counted at once, their evidence by
            `scan`.
        reconstruction_error: What the purifier left [N]; None: no signal asks for it.
        valid: Images whose pixels are all in [0, 1] [N]; others are flagged. None: all are.
        constant_time: Whether what only some inputs need is computed for all, so that time does not tell who they are.

    Attributes:
        first_answer: The label that the evidence is measured against [N].
        used: Members asked [N].
        changed: Those of them that do not agree with the first answer [N].
        ratio: Log-likelihood ratio [N], nats.
        decided: Whether a boundary was reached [N].
        adversarial: Whether it was the alarm boundary [N].
        settled: Whether the vote on a flagged input is over [N].
        jury: What jurors said.

    Raises:
        ValueError: If a signal is the reconstruction error, and that is not given.
    """

    def __init__(
        self,
        test: SequentialTest,
        classifier: Float32,
        opening: Float32,
        *,
        reconstruction_error: Float32 | None = None,
        valid: Bool | None = None,
        constant_time: bool = False,
    ) -> None:
        self.test, self.classifier = test, classifier
        self._constant_time = constant_time
        count = len(classifier)
        self.used, self.changed = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self.decided = np.zeros(count, dtype=bool) if valid is None else ~valid
        self.adversarial, self.settled = self.decided.copy(), np.zeros(count, dtype=bool)
        self._opening = by_class(opening)
        self.jury = Ballots(test, classifier, self._opening)
        self.first_answer = self.label()
        self._places = _places(classifier, self.first_answer)
        self.ratio = np.zeros(count)
        for signal in test.signals:
            self.ratio += signal.increments_of.at(-self.signal(signal.name, reconstruction_error))

    def __len__(self) -> int:
        return len(self.classifier)

    @property
    def votes(self) -> Float64:
        """Weight of the jurors' votes for each class [N, K]."""
        return np.asarray(self.jury.votes.T)

    def rows(self, index: Bool | Int64 | slice) -> Self:
        """The chosen inputs, as they are now."""
        chosen = copy(self)
        for name in _ROWS:
            setattr(chosen, name, getattr(self, name)[index])
        chosen.jury = self.jury.rows(index)
        chosen._places = _places(chosen.classifier, chosen.first_answer)
        return chosen

    def join(self, others: Sequence[Self]) -> Self:
        """These inputs and others of the same test."""
        joined = copy(self)
        for name in _ROWS:
            setattr(joined, name, np.concatenate([getattr(one, name) for one in (self, *others)]))
        joined.jury = self.jury.join([one.jury for one in others])
        joined._places = _places(joined.classifier, joined.first_answer)
        return joined

    def scan(self, first: int, logs: Float32) -> None:
        """Ask members one after the other; inputs that are decided are not asked, but for votes.

        Args:
            first: Index of the first of them.
            logs: Their log-probabilities [w, N, K]; numbers of members that do not ask an input may be any.
        """
        test, count = self.test, len(logs)
        across = self._opening if first == 0 and count == len(self._opening) else by_class(logs)  # [w, K, N]
        of_answer = _taken(logs, self._places)  # [w, N]
        margins = np.maximum.reduce(across, axis=1) - of_answer
        changes = margins >= NEAR_TIE
        negative = -margins if test.evidence == "margin" else of_answer  # scores
        opening = max(0, min(first + count, test.opening) - first)
        if opening:  # asked whatever was decided, and there is no boundary before the last of it
            self.used += opening
            self.changed += np.add.reduce(changes[:opening], axis=0, dtype=np.int64)
            undecided = ~self.decided
            for j in range(opening):
                self._weigh(first + j, negative[j], undecided)
            self._decide(first + opening - 1, undecided)
        if opening < count:
            self._ask(first, opening, across, changes, negative)

    def _ask(self, first: int, opening: int, across: Float32, changes: Bool, negative: Float32) -> None:
        """Ask members behind the opening.

        Args:
            first: Index of the first member of the arrays.
            opening: How many of them are members of the opening.
            across: Their log-probabilities [w, K, N].
            changes: Where they do not agree with the first answer [w, N].
            negative: Their scores, negative [w, N].
        """
        test, begin = self.test, first + opening
        asking, said = np.zeros(changes[opening:].shape, dtype=bool), across[opening:]
        for j, i in enumerate(range(begin, first + len(changes))):
            asked = self._asks(i, test.jurors[i])
            if asked is None:
                continue
            asking[j] = asked
            if test.counts_each and test.jurors[i]:
                self.jury.hear(i, said[j : j + 1], asking[j : j + 1])
            self.used += asked
            self.changed += asked & changes[opening + j]
            if i <= test.last:
                undecided = ~self.decided
                self._weigh(i, negative[opening + j], undecided)
                self._decide(i, undecided)
            elif test.curtails:
                self._settle(i)
        if not test.counts_each:
            self.jury.hear(begin, said, asking)

    def _asks(self, first: int, votes: bool) -> Bool | None:
        """Inputs that members behind the opening are asked about [N]; None: about no input at all.

        Args:
            first: Index of the first of them.
            votes: Whether one of them has a vote.
        """
        test, flagged = self.test, None
        if test.polls and votes:
            flagged = self.adversarial & ~self.settled if test.curtails else self.adversarial
        if first > test.last:
            return flagged
        return ~self.decided if flagged is None else ~self.decided | flagged

    def waits(self, first: int, size: int) -> Bool:
        """Inputs that one of some members asks [N]: undecided ones, and flagged ones whose vote goes on among them.

        Inputs that are undecided only because members before these have not been asked may be left out.
        """
        asked = self._asks(first, any(self.test.jurors[max(first, self.test.opening) : first + size]))
        return np.zeros(len(self), dtype=bool) if asked is None else asked

    def stops_clean(self, member: int, lower: float) -> Bool:
        """Where 'clean' can be decided by a boundary after this member, if no alarm is [N]."""
        clean = self.ratio <= lower
        if self.test.await_vote:
            clean &= self.vote_is_settled(member)
        return np.asarray(clean)

    def vote_is_settled(self, member: int) -> Bool:
        """Where no vote behind this member's can change or tie the winner [N]."""
        return settled(self.jury.votes, float(self.test.votes_left[member]))

    def label(self) -> Int64:
        """The answer of the classifier and the jurors asked so far, were nothing flagged [N]."""
        match self.test.answer:
            case "robust":
                return self.jury.voted_label()
            case "mixed":
                return self.jury.mixed_label()
            case "accurate":
                return np.asarray(self.classifier.argmax(axis=1), dtype=np.int64)

    def verdict(self) -> tuple[Int64, Bool, Bool]:
        """(label, adversarial, abstained) by the final rule, once nobody asks any more [N]."""
        test, undecided, adversarial = self.test, ~self.decided, self.adversarial
        if test.last >= test.members:
            adversarial = adversarial | (undecided & (self.ratio > test.final_threshold))
        abstained = np.zeros(len(self), dtype=bool)
        if test.correction == "reject":
            abstained |= adversarial
        if test.undecided_abstains:
            abstained |= undecided
        label = self.first_answer
        if test.answer != "accurate" and any(test.jurors[test.opening :]):
            later = self.used > test.opening  # others are as after the opening
            if self._matters(later):
                label = np.where(later, self.label(), label)
        if test.correction == "correct" and self._matters(adversarial):
            label = np.where(adversarial, self.jury.voted_label(), label)
        return label, adversarial, abstained

    def label_change_rate(self) -> Float32:
        """Share of the asked members that do not agree with the first answer [N]."""
        return np.asarray(self.changed / self.used, dtype=np.float32)

    def signal(self, name: SignalName, reconstruction_error: Float32 | None) -> Float32:
        """Scores of a signal [N], as in Signal; the jurors are those of the opening.

        Raises:
            ValueError: If it is the reconstruction error, and that is not given.
        """
        match name:
            case "jury margin":
                mean = self.jury.summed / max(self.test.opening_weight, WEIGHT_UNIT)
                answers = np.arange(len(mean))[:, None] == self.first_answer  # [K, N], one of each input
                others, of_label = np.where(answers, -np.inf, mean), np.where(answers, mean, -np.inf)
                margins = np.maximum.reduce(others, axis=0) - np.maximum.reduce(of_label, axis=0)
                return np.asarray(margins, dtype=np.float32)
            case "classifier surprise":
                return np.asarray(-self.classifier.take(self._places), dtype=np.float32)
            case _:
                if reconstruction_error is None:
                    raise ValueError("the test counts the reconstruction error, which is not given")
                return reconstruction_error

    def _weigh(self, member: int, negative: Float32, undecided: Bool) -> None:
        """Add the evidence of a member, given its scores as their negatives [N], to undecided inputs."""
        increments = self.test.increments_of[member]
        if increments is not None:
            np.add(self.ratio, increments.at(negative), out=self.ratio, where=undecided)

    def _decide(self, member: int, undecided: Bool) -> None:
        test, (lower, upper) = self.test, self.test.boundaries[member]
        if upper < np.inf:
            crossed = undecided & (self.ratio >= upper)
            self.adversarial |= crossed
            self.decided |= crossed
        if lower > -np.inf:
            self.decided |= undecided if member == test.last else undecided & self.stops_clean(member, lower)
        if test.curtails:
            self._settle(member)

    def _settle(self, member: int) -> None:
        """End the vote on flagged inputs where this member's was the last that could matter."""
        if self._matters(self.adversarial):
            self.settled |= self.adversarial & self.vote_is_settled(member)

    def _matters(self, inputs: Bool) -> bool:
        """Whether something is computed that these inputs need."""
        return self._constant_time or bool(np.count_nonzero(inputs))


def _places(scores: Float32, label: Int64) -> Int64:
    """Where the number of each input's label [N] is among all numbers of all inputs, of which each has [K].

    Taking them there is faster than indexing.
    """
    count, classes = scores.shape[-2:]
    return np.asarray(np.arange(0, count * classes, classes) + label, dtype=np.int64)


def _taken(scores: Float32, places: Int64) -> Float32:
    """The numbers [..., N] at some places of all inputs' [..., N, K]."""
    return scores.reshape(*scores.shape[:-2], -1).take(places, axis=-1)
