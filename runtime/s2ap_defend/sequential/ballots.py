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

_SUMS = ("_votes", "_summed", "_probable", "_own")


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
        self._waiting: list[tuple[int, Float32, Bool]] = []
        exact = np.empty((len(opening) + 1, *opening.shape[1:]))
        exact[:-1], exact[-1] = opening, classifier.T
        probabilities = exponential(exact) if test.answer == "mixed" else exact
        weights, self._own = test.vote_weights[: len(opening)], probabilities[-1]
        self._votes = _votes(opening, np.broadcast_to(weights[:, None], (len(opening), len(classifier))))
        self._summed, self._probable = np.zeros(self._votes.shape), np.zeros(self._votes.shape)
        for j, weight in enumerate(weights.tolist()):
            if weight:
                self._summed += exact[j] * weight
                self._probable += probabilities[j] * weight

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
        self._count()
        return self._votes

    @property
    def summed(self) -> Float64:
        """Sum of the log-probabilities [K, N]; of all jurors where a vote may give the label, else of the opening's."""
        self._count()
        return self._summed

    def voted_label(self) -> Int64:
        """The label with most votes [N]; where a vote may give it."""
        return voted_label(self.votes, self.summed)

    def mixed_label(self) -> Int64:
        """The label of the mix [N]; where the answer is mixed."""
        test, weight = self._test, np.add.reduce(self.votes, axis=0)  # exact, in whatever order
        share, amplification = test.jury_share, test.amplification
        return mixed_label(self._own, self._probable, weight, jury_share=share, amplification=amplification)

    def rows(self, index: Bool | Int64 | slice) -> Self:
        """The chosen inputs."""
        chosen = copy(self)
        for name in _SUMS:
            setattr(chosen, name, getattr(self, name)[:, index])
        chosen._waiting = [(first, logs[..., index], asked[:, index]) for first, logs, asked in self._waiting]
        return chosen

    def join(self, others: Sequence[Self]) -> Self:
        """These inputs and others of the same test."""
        everyone, joined = (self, *others), copy(self)
        for one in everyone:
            one._count()
        for name in _SUMS:
            setattr(joined, name, np.concatenate([getattr(one, name) for one in everyone], axis=1))
        joined._waiting = []
        return joined

    def _count(self) -> None:
        """Count what has been heard, one juror after the other."""
        if not self._waiting:
            return
        test, waiting, self._waiting = self._test, self._waiting, []
        weights = np.concatenate([test.vote_weights[first : first + len(logs)] for first, logs, _ in waiting])
        logs, asked = (np.concatenate([one[part] for one in waiting]) for part in (1, 2))
        self._votes = self._votes + _votes(logs, weights[:, None] * asked)
        exact = logs.astype(np.float64)
        if test.sums_logs:
            _add(self._summed, exact, weights, asked)
        if test.answer == "mixed":
            _add(self._probable, exponential(exact), weights, asked)


def _votes(logs: Float32, weights: Float64) -> Float64:
    """Weight of the votes for each class [K, N], exact; of log-probabilities [w, K, N] and weights [w, N]."""
    _, classes, count = logs.shape
    places = logs.argmax(axis=1) * count + np.arange(count)
    counted = np.bincount(places.ravel(), weights.ravel(), classes * count)
    return np.asarray(counted.reshape(classes, count), dtype=np.float64)


def _add(total: Float64, numbers: Float64, weights: Float64, asked: Bool) -> None:
    """Add numbers [w, K, N] times weights [w] to a sum [K, N], one juror after the other, where asked [w, N]."""
    for weight, one, where in zip(weights.tolist(), numbers, asked, strict=True):
        if weight:
            np.add(total, one * weight, out=total, where=where)


def by_class(logs: Float32) -> Float32:
    """Log-probabilities [w, N, K] with inputs last [w, K, N], so that what is done for each class is done for many."""
    return np.ascontiguousarray(logs.swapaxes(1, 2))
