"""Evidence and votes as members are asked: the loop that the numpy reference and the staged executor share."""

from collections.abc import Sequence
from copy import copy
from typing import Self

import numpy as np

from s2ap_defend.sequential.jury import exponential, mixed_label, settled, voted_label
from s2ap_defend.sequential.tables import WEIGHT_UNIT, Evidence, SequentialTest, SignalName
from s2ap_defend.types import Bool, Float32, Float64, Int64

__all__ = ["NEAR_TIE", "Path", "member_scores"]

NEAR_TIE = np.float32(1e-4)
"""A member whose top log-probability exceeds that of a label by less than this agrees with the label."""

_ROWS = ("classifier", "first_answer", "used", "changed", "ratio", "decided", "adversarial", "settled")
_COLUMNS = ("jury", "_own")
"""What has inputs in its last dimension."""


def member_scores(evidence: Evidence, log_probabilities: Float32, label: Int64) -> Float32:
    """Scores of members against labels, in nats, shape [..., N].

    Args:
        evidence: 'margin' or 'surprise', as in SequentialTest.
        log_probabilities: Member log-probabilities [..., N, K].
        label: Labels [N].
    """
    of_label = _of_label(log_probabilities, label)
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
        jury: What jurors said [J, K, N]: weights of their votes for each class, sums of their log-probabilities, and
            of their probabilities where the answer is mixed.

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
        count, classes = classifier.shape
        self.used, self.changed = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self.decided = np.zeros(count, dtype=bool) if valid is None else ~valid
        self.adversarial, self.settled = self.decided.copy(), np.zeros(count, dtype=bool)
        self._classes = np.arange(classes)[:, None]
        exact = np.empty((len(opening) + 1, classes, count))
        exact[:-1], exact[-1] = opening.swapaxes(1, 2), classifier.T
        probabilities = exponential(exact) if test.answer == "mixed" else exact
        ballots = self._ballots(0, opening, exact[:-1], probabilities[:-1])
        self.jury, self._own = np.zeros(ballots.shape[1:]), probabilities[-1]
        for votes, ballot in zip(test.jurors, ballots, strict=False):
            if votes:
                self.jury += ballot
        self.first_answer = self._label(test.opening_weight)
        self.ratio = np.zeros(count)
        for signal in test.signals:
            bins = _bins(self.signal(signal.name, reconstruction_error), signal.edges)
            self.ratio += signal.increments[bins]

    def __len__(self) -> int:
        return len(self.classifier)

    @property
    def votes(self) -> Float64:
        """Weight of the jurors' votes for each class [N, K]."""
        return np.asarray(self.jury[0].T)

    def rows(self, index: Bool | Int64 | slice) -> Self:
        """The chosen inputs, as they are now."""
        chosen = copy(self)
        for name in _ROWS:
            setattr(chosen, name, getattr(self, name)[index])
        for name in _COLUMNS:
            setattr(chosen, name, getattr(self, name)[..., index])
        return chosen

    def join(self, others: Sequence[Self]) -> Self:
        """These inputs and others of the same test."""
        joined = copy(self)
        for name in (*_ROWS, *_COLUMNS):
            axis = -1 if name in _COLUMNS else 0
            setattr(joined, name, np.concatenate([getattr(one, name) for one in (self, *others)], axis=axis))
        return joined

    def scan(self, first: int, logs: Float32) -> None:
        """Ask members one after the other; inputs that are decided are not asked, but for votes.

        Args:
            first: Index of the first of them.
            logs: Their log-probabilities [w, N, K]; numbers of members that do not ask an input may be any.
        """
        test, end = self.test, first + len(logs)
        of_answer = _of_label(logs, self.first_answer)  # [w, N]
        across = np.ascontiguousarray(logs.swapaxes(1, 2))  # [w, K, N]
        margins = np.maximum.reduce(across, axis=1) - of_answer
        changes = margins >= NEAR_TIE
        bins = _bins(margins if test.evidence == "margin" else -of_answer, test.edges[first:end])
        increments = test.increments.take(bins + test.first_bins[first:end])
        opening, undecided = max(0, min(end, test.opening) - first), ~self.decided
        if opening:  # asked whatever was decided, and there is no boundary before the last of it
            self.used += opening
            self.changed += np.add.reduce(changes[:opening], axis=0, dtype=np.int64)
            for added in increments[:opening]:
                np.add(self.ratio, added, out=self.ratio, where=undecided)
            self._decide(first + opening - 1, undecided)
        if opening == len(logs):
            return
        ballots = None
        if any(test.jurors[first + opening : end]):
            exact = across.astype(np.float64)
            ballots = self._ballots(first, logs, exact, exponential(exact) if test.answer == "mixed" else exact)
        for j, i in enumerate(range(first + opening, end), start=opening):
            undecided = ~self.decided
            asked = undecided
            if ballots is not None and test.jurors[i]:
                if test.polls:
                    asked = undecided | (self.adversarial & ~self.settled)
                np.add(self.jury, ballots[j], out=self.jury, where=asked)
            self.used += asked
            self.changed += asked & changes[j]
            np.add(self.ratio, increments[j], out=self.ratio, where=undecided)
            self._decide(i, undecided)

    def waits(self, first: int, size: int) -> Bool:
        """Inputs that one of some members asks [N]: undecided ones, and flagged ones whose vote goes on among them."""
        test, waiting = self.test, ~self.decided
        if test.polls and any(test.jurors[max(first, test.opening) : first + size]):
            waiting |= self.adversarial & ~self.settled
        return np.asarray(waiting)

    def stops_clean(self, member: int, lower: float) -> Bool:
        """Where 'clean' can be decided by a boundary after this member, if no alarm is [N]."""
        clean = self.ratio <= lower
        if self.test.await_vote:
            clean &= self.vote_is_settled(member)
        return np.asarray(clean)

    def vote_is_settled(self, member: int) -> Bool:
        """Where no vote behind this member's can change or tie the winner [N]."""
        return settled(self.jury[0], float(self.test.votes_left[member]))

    def label(self) -> Int64:
        """The answer of the classifier and the jurors asked so far, were nothing flagged [N]."""
        return self._label()

    def verdict(self) -> tuple[Int64, Bool, Bool]:
        """(label, adversarial, abstained) by the final rule, once nobody asks any more [N]."""
        test, undecided = self.test, ~self.decided
        adversarial = self.adversarial | (undecided & (self.ratio > test.final_threshold))
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
            label = np.where(adversarial, voted_label(*self.jury[:2]), label)
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
                mean = self.jury[1] / max(self.test.opening_weight, WEIGHT_UNIT)
                answers = self._classes == self.first_answer  # [K, N], one of each input
                others, of_label = np.where(answers, -np.inf, mean), np.where(answers, mean, -np.inf)
                margins = np.maximum.reduce(others, axis=0) - np.maximum.reduce(of_label, axis=0)
                return np.asarray(margins, dtype=np.float32)
            case "classifier surprise":
                return np.asarray(-_of_label(self.classifier, self.first_answer), dtype=np.float32)
            case _:
                if reconstruction_error is None:
                    raise ValueError("the test counts the reconstruction error, which is not given")
                return reconstruction_error

    def _label(self, weight: float | None = None) -> Int64:
        """The answer, were nothing flagged [N].

        Args:
            weight: That of all jurors' votes, where it is one for all inputs.
        """
        test = self.test
        match test.answer:
            case "robust":
                return voted_label(*self.jury[:2])
            case "mixed":
                votes, _, probabilities = self.jury
                return mixed_label(
                    self._own,
                    probabilities,
                    np.add.reduce(votes, axis=0) if weight is None else weight,  # exact, in whatever order
                    jury_share=test.jury_share,
                    amplification=test.amplification,
                )
            case "accurate":
                return np.asarray(self.classifier.argmax(axis=1), dtype=np.int64)

    def _decide(self, member: int, undecided: Bool) -> None:
        test, (lower, upper) = self.test, self.test.boundaries[member]
        if upper < np.inf:
            crossed = undecided & (self.ratio >= upper)
            self.adversarial |= crossed
            self.decided |= crossed
        if lower > -np.inf:
            self.decided |= undecided & self.stops_clean(member, lower)
        if test.curtails and self._matters(self.adversarial):
            self.settled |= self.adversarial & self.vote_is_settled(member)

    def _matters(self, inputs: Bool) -> bool:
        """Whether something is computed that these inputs need."""
        return self._constant_time or bool(np.count_nonzero(inputs))

    def _ballots(self, first: int, logs: Float32, exact: Float64, probabilities: Float64) -> Float64:
        """What members add to the jury [w, J, K, N].

        Args:
            first: Index of the first of them.
            logs: Their log-probabilities [w, N, K].
            exact: The same [w, K, N].
            probabilities: Theirs [w, K, N]; for a mix.
        """
        members, classes, count = exact.shape
        ballots = np.empty((members, 3 if self.test.answer == "mixed" else 2, classes, count))
        np.equal(logs.argmax(axis=-1)[:, None], self._classes, out=ballots[:, 0])
        ballots[:, 1] = exact
        if self.test.answer == "mixed":
            ballots[:, 2] = probabilities
        ballots *= self.test.vote_weights[first : first + members, None, None, None]
        return ballots


def _of_label(scores: Float32, label: Int64) -> Float32:
    """The number of each input's label [..., N] among those of its classes [..., N, K]."""
    *more, count, classes = scores.shape
    places = np.arange(0, count * classes, classes) + label  # taking is faster than indexing
    return scores.reshape(*more, count * classes).take(places, axis=-1)


def _bins(scores: Float32, edges: Float32) -> Int64:
    """The number of edges [..., K - 1] that are at most each score [..., N]."""
    reached = scores[..., None, :] >= edges[..., None]
    few = np.uint8 if edges.shape[-1] < 256 else np.int64
    return np.asarray(np.add.reduce(reached.view(np.uint8), axis=-2, dtype=few), dtype=np.int64)
