"""The sequential test with a slope, so that gradients say how far its evidence is from a decision.

c is the classifier's log-probabilities [N, K], m those of members [n, N, K], `label` first answers [N].
"""

import math

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.sequential import SequentialTest
from s2ap_train.adaptive.margins import best_other, targeted_margin

__all__ = ["EvidenceSurrogate"]

_FAR = 1e4


class EvidenceSurrogate:
    """The sequential test with a slope: increments interpolated linearly between the middles of their bins.

    Beyond the outer bins the evidence goes on with a small slope, so that no gradient vanishes there. It follows
    the table, it does not bound it: what counts is always checked on the file. Of the signals, the jury's margin and
    the classifier's surprise are counted; the reconstruction error is not.

    Args:
        test: Tables of the file.
        device: Where the log-probabilities are.
    """

    def __init__(self, test: SequentialTest, device: torch.device) -> None:
        self._evidence, self._opening = test.evidence, test.opening
        self._members = _Table(test.edges, test.increments, device)
        self._signals = {
            one.name: _Table(one.edges[None], one.increments[None], device, signed=one.name == "jury margin")
            for one in test.signals
        }
        self._upper = torch.tensor(test.upper, dtype=torch.float32, device=device)[:, None]
        self._lower = torch.tensor(test.lower, dtype=torch.float32, device=device)[:, None]
        self._weights = torch.tensor(test.vote_weights, dtype=torch.float32, device=device)
        self._left = torch.tensor(test.votes_left, dtype=torch.float32, device=device)[:, None]
        self._await_vote = test.await_vote
        self._final = -math.inf if test.undecided_abstains else test.final_threshold
        self._final_alarm = test.final_threshold

    def excess(self, c: Tensor, m: Tensor, label: Tensor) -> Tensor:
        """How far the evidence lies above what is answered unflagged when the first answer is `label` [N], in nats.

        The attacker may stop the test early at 'clean' or reach the end; the easier of the two counts. Where the
        undecided abstain, the end is no way out.

        Args:
            c: Of the classifier.
            m: Of all members.
            label: First answers.
        """
        ratio = self.ratios(c, m, label)
        alarm = (ratio - self._upper).cummax(0).values
        early = torch.maximum(alarm, self._until_accepted(ratio, m))
        end = torch.maximum(alarm[-1], ratio[-1] - self._final)
        return torch.minimum(early.amin(0), end).clamp(-_FAR, _FAR)

    def until_clean(self, c: Tensor, m: Tensor, label: Tensor) -> Tensor:
        """How far the evidence is from being called clean by these members, before any other is asked [N], in nats.

        Args:
            c: Of the classifier.
            m: Of the first members [k, N, K], k at most n.
            label: First answers.
        """
        ratio = self.ratios(c, m, label)
        alarm = (ratio - self._upper[: len(m)]).cummax(0).values
        return torch.maximum(alarm, self._until_accepted(ratio, m)).amin(0).clamp(-_FAR, _FAR)

    def until_alarm(self, c: Tensor, m: Tensor, label: Tensor) -> Tensor:
        """How far the evidence is from an alarm when the first answer is `label` [N], in nats.

        An alarm counts where 'clean' was not decided before it.

        Args:
            c: Of the classifier.
            m: Of all members.
            label: First answers.
        """
        ratio = self.ratios(c, m, label, leaking=True)
        clean = (-self._until_accepted(ratio, m)).cummax(0).values
        before = torch.cat([torch.full_like(clean[:1], -_FAR), clean[:-1]])
        early = torch.maximum(self._upper - ratio, before)
        end = torch.maximum(self._final_alarm - ratio[-1], clean[-1])
        return torch.minimum(early.amin(0), end).clamp(-_FAR, _FAR)

    def beyond(self, c: Tensor, m: Tensor, label: Tensor) -> Tensor:
        """How far the evidence is beyond the nearer boundary after each member [k, N], in nats; negative: undecided.

        Args:
            c: Of the classifier.
            m: Of the first members [k, N, K], k at most n.
            label: First answers.
        """
        ratio = self.ratios(c, m, label, leaking=True)
        return torch.maximum(ratio - self._upper[: len(m)], -self._until_accepted(ratio, m)).clamp(-_FAR, _FAR)

    def ratios(self, c: Tensor, m: Tensor, label: Tensor, *, leaking: bool = False) -> Tensor:
        """The log-likelihood ratio after each member [k, N], in nats.

        Args:
            c: Of the classifier.
            m: Of the first members [k, N, K], k at most n.
            label: First answers.
            leaking: Whether members that agree, all of whose scores are zero where the evidence is the margin, differ
                by how firmly they do: by less than 2 % of what they can say. A search for evidence needs it.
        """
        of_label = _of(m, label)
        added = self._members(-of_label if self._evidence == "surprise" else m.amax(2) - of_label)
        if leaking and self._evidence == "margin":
            firm = (of_label - best_other(m, label)).clamp_min(0.0)
            added = added - 0.02 * self._members.span[: len(m)] * firm / (1.0 + firm)
        return self._from_signals(c, m, label) + added.cumsum(0)

    def _from_signals(self, c: Tensor, m: Tensor, label: Tensor) -> Tensor:
        """What the signals add before the first member [N], in nats."""
        added = torch.zeros_like(c[:, 0])
        for name, table in self._signals.items():
            if name == "classifier surprise":
                added = added + table(-_of(c[None], label))[0]
            elif name == "jury margin":
                opening = m[: self._opening]
                weights = self._weights[: len(opening), None, None]
                mean = (weights * opening).sum(0) / weights.sum().clamp_min(2.0**-8)
                added = added + table(targeted_margin(mean, label)[None])[0]
        return added

    def _until_accepted(self, ratio: Tensor, m: Tensor) -> Tensor:
        """How far the evidence is above the clean boundary after each member [k, N]; far while votes are open."""
        gap = ratio - self._lower[: len(m)]
        if not self._await_vote:
            return gap
        voted = torch.nn.functional.one_hot(m.detach().argmax(2), m.shape[2])  # [k, N, K]
        votes = (self._weights[: len(m), None, None] * voted).cumsum(0)
        leader, runner_up = votes.topk(2, dim=2).values.unbind(2)
        return torch.where(leader - runner_up > self._left[: len(m)], gap, _FAR)


class _Table:
    """Increments as a continuous function of scores, for n members.

    Args:
        edges: Of the bins [n, K - 1].
        increments: Of the bins [n, K].
        device: Where the scores are.
        signed: Whether scores can be negative.
    """

    def __init__(
        self, edges: np.ndarray, increments: np.ndarray, device: torch.device, *, signed: bool = False
    ) -> None:
        self._knots = torch.tensor(_knots(edges, signed), dtype=torch.float32, device=device)  # [n, K]
        self._values = torch.tensor(increments, dtype=torch.float32, device=device)  # [n, K]
        self.span = self._values.amax(1, keepdim=True) - self._values.amin(1, keepdim=True)  # [n, 1]
        self._slope = 0.1 * self.span / (self._knots[:, -1:] - self._knots[:, :1]).clamp_min(1e-3)

    def __call__(self, score: Tensor) -> Tensor:
        """Increments of the first members' scores [k, N]."""
        asked = len(score)
        knots, values = self._knots[:asked], self._values[:asked]
        right = torch.searchsorted(knots, score.detach().contiguous()).clamp(1, knots.shape[1] - 1)
        x0, x1 = knots.gather(1, right - 1), knots.gather(1, right)
        y0, y1 = values.gather(1, right - 1), values.gather(1, right)
        inside = score.clamp(knots[:, :1], knots[:, -1:])
        return y0 + (y1 - y0) * (inside - x0) / (x1 - x0) + self._slope[:asked] * (score - inside)


def _of(m: Tensor, label: Tensor) -> Tensor:
    """Log-probabilities of labels [N], from those of members [k, N, K] -> [k, N]."""
    return m.gather(2, label[None, :, None].expand(len(m), -1, 1))[..., 0]


def _knots(edges: np.ndarray, signed: bool) -> np.ndarray:
    """Middle of every bin [n, K], the outer bins as wide as their neighbours, strictly ascending.

    The first bin of scores that are never negative does not reach below zero.
    """
    finite = np.clip(edges.astype(np.float64), -_FAR, _FAR)
    widths = np.diff(finite, axis=1) if finite.shape[1] > 1 else np.ones_like(finite)
    first, last = np.maximum(widths[:, :1], 0.2), np.maximum(widths[:, -1:], 0.2)
    middles = (finite[:, 1:] + finite[:, :-1]) / 2
    lowest = finite[:, :1] - first / 2
    if not signed:
        lowest = np.maximum(lowest, np.minimum(finite[:, :1], 0.0))
    knots = np.concatenate([lowest, middles, finite[:, -1:] + last / 2], axis=1)
    steps = np.maximum(np.diff(knots, axis=1), 1e-3)
    return np.concatenate([knots[:, :1], knots[:, :1] + np.cumsum(steps, axis=1)], axis=1)
