"""What jurors say of many inputs, counted no sooner than it is asked for.

Where nothing depends on it before the last member has been asked, all waves behind the opening are counted at once.
"""

from collections.abc import Sequence
from copy import copy
from typing import Self

import numpy as np

from s2ap_defend.sequential.jury import exponential, mixed_label, voted_label
from s2ap_defend.sequential.tables import SequentialTest
from s2ap_defend.types import Bool, Float32, Float64, Int64

__all__ = ["Ballots", "by_class"]


class Ballots:
    """What jurors say of N inputs: weights of their votes, and weighted sums of what they say of each class.

    Those are sums of their log-probabilities, and of their probabilities where the answer is mixed.

    Args:
        test: The tables.
        classifier: Log-probabilities of the classifier [N, K].
        opening: Those of the members of the opening [o, K, N]; all inputs are asked about.
    """

    def __init__(self, test: SequentialTest, classifier: Float32, opening: Float32) -> None:
        self._test = test
        exact = np.empty((len(opening) + 1, *opening.shape[1:]))
        exact[:-1], exact[-1] = opening, classifier.T
        probabilities = exponential(exact) if test.answer == "mixed" else exact
        self._own = probabilities[-1]
        ballots = _ballots(test, self._weights(0, opening), opening, exact[:-1], probabilities[:-1])
        self._counted = np.zeros(ballots.shape[1:])
        for votes, ballot in zip(test.jurors, ballots, strict=False):
            if votes:
                self._counted += ballot
        self._waiting: list[tuple[int, Float32, Bool]] = []

    def hear(self, first: int, logs: Float32, asked: Bool) -> None:
        """Take down what members behind the opening say.

        Args:
            first: Index of the first of them.
            logs: Log-probabilities [w, K, N]; those of inputs that are not asked about may be any numbers.
            asked: Whom each was asked about [w, N].
        """
        self._waiting.append((first, logs, asked))

    @property
    def votes(self) -> Float64:
        """Weight of the votes for each class [K, N]."""
        return np.asarray(self._count()[0])

    @property
    def summed(self) -> Float64:
        """Sum of the log-probabilities [K, N]."""
        return np.asarray(self._count()[1])

    def voted_label(self) -> Int64:
        """The label with most votes [N]."""
        votes, summed, *_ = self._count()
        return voted_label(votes, summed)

    def mixed_label(self) -> Int64:
        """The label of the mix [N]."""
        test, (votes, _, probabilities) = self._test, self._count()
        weight = np.add.reduce(votes, axis=0)  # exact, in whatever order
        share, amplification = test.jury_share, test.amplification
        return mixed_label(self._own, probabilities, weight, jury_share=share, amplification=amplification)

    def rows(self, index: Bool | Int64 | slice) -> Self:
        """The chosen inputs."""
        chosen = copy(self)
        chosen._counted, chosen._own = self._counted[..., index], self._own[:, index]
        chosen._waiting = [(first, logs[..., index], asked[:, index]) for first, logs, asked in self._waiting]
        return chosen

    def join(self, others: Sequence[Self]) -> Self:
        """These inputs and others of the same test."""
        everyone, joined = (self, *others), copy(self)
        joined._counted = np.concatenate([one._count() for one in everyone], axis=-1)
        joined._own = np.concatenate([one._own for one in everyone], axis=-1)
        joined._waiting = []
        return joined

    def _count(self) -> Float64:
        """Count what has been heard [J, K, N], one juror after the other."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return self._counted
        test, members = self._test, [i for first, logs, _ in waiting for i in range(first, first + len(logs))]
        logs, asked, weights = waiting[0][1], waiting[0][2], self._weights(*waiting[0][:2])
        if len(waiting) > 1:
            logs, asked = (np.concatenate([one[part] for one in waiting]) for part in (1, 2))
            weights = np.concatenate([self._weights(*one[:2]) for one in waiting])
        exact = logs.astype(np.float64)
        ballots = _ballots(test, weights, logs, exact, exponential(exact) if test.answer == "mixed" else exact)
        for i, ballot, where in zip(members, ballots, asked, strict=True):
            if test.jurors[i]:
                np.add(self._counted, ballot, out=self._counted, where=where)
        return self._counted

    def _weights(self, first: int, logs: Float32) -> Float64:
        """Weights of the votes of members [w], the first of them of this index."""
        return self._test.vote_weights[first : first + len(logs)]


def _ballots(test: SequentialTest, weights: Float64, logs: Float32, exact: Float64, probabilities: Float64) -> Float64:
    """What members add [w, J, K, N].

    Args:
        test: The tables.
        weights: Of their votes [w].
        logs: Their log-probabilities [w, K, N].
        exact: The same.
        probabilities: Theirs; for a mix.
    """
    count, classes, inputs = exact.shape
    ballots = np.empty((count, 3 if test.answer == "mixed" else 2, classes, inputs))
    np.equal(logs.argmax(axis=1)[:, None], np.arange(classes)[:, None], out=ballots[:, 0])
    ballots[:, 1] = exact
    if test.answer == "mixed":
        ballots[:, 2] = probabilities
    ballots *= weights[:, None, None, None]
    return ballots


def by_class(logs: Float32) -> Float32:
    """Log-probabilities [w, N, K] with inputs last [w, K, N], so that what is done for each class is done for many."""
    return np.ascontiguousarray(logs.swapaxes(1, 2))
