"""The sequential test with a slope, so that gradients say how far its evidence is from a decision."""

import math

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.sequential import SequentialTest

__all__ = ["EvidenceSurrogate"]

_FAR = 1e4


class EvidenceSurrogate:
    """The sequential test with a slope: increments interpolated linearly between the middles of their bins.

    Beyond the outer bins the evidence goes on with a small slope, so that no gradient vanishes there. It follows
    the table, it does not bound it: what counts is always checked on the file.

    Args:
        test: Tables of the file.
        device: Where the log-probabilities are.
    """

    def __init__(self, test: SequentialTest, device: torch.device) -> None:
        self._evidence = test.evidence
        self._knots = torch.tensor(_knots(test.edges), dtype=torch.float32, device=device)  # [n, K]
        self._values = torch.tensor(test.increments, dtype=torch.float32, device=device)  # [n, K]
        span = (self._knots[:, -1:] - self._knots[:, :1]).clamp_min(1e-3)
        self._slope = 0.1 * (self._values.amax(1, keepdim=True) - self._values.amin(1, keepdim=True)) / span
        self._upper = torch.tensor(test.upper, dtype=torch.float32, device=device)[:, None]
        self._lower = torch.tensor(test.lower, dtype=torch.float32, device=device)[:, None]
        self._final = -math.inf if test.undecided_abstains else test.final_threshold
        self._final_alarm = test.final_threshold

    def excess(self, members: Tensor, label: Tensor) -> Tensor:
        """How far the evidence lies above what is answered unflagged when the base label is `label` [N], in nats.

        The attacker may stop the test early at 'clean' or reach the end; the easier of the two counts. Where the
        undecided abstain, the end is no way out.

        Args:
            members: Log-probabilities of all members [n, N, K].
            label: Base labels [N].
        """
        ratio = self.ratios(members, label)
        alarm = (ratio - self._upper).cummax(0).values
        early = torch.maximum(alarm, ratio - self._lower)
        end = torch.maximum(alarm[-1], ratio[-1] - self._final)
        return torch.minimum(early.amin(0), end).clamp(-_FAR, _FAR)

    def until_clean(self, members: Tensor, label: Tensor) -> Tensor:
        """How far the evidence is from being called clean by these members, before any other is asked [N], in nats.

        Args:
            members: Log-probabilities of the first members [k, N, K], k at most n.
            label: Base labels [N].
        """
        ratio = self.ratios(members, label)
        alarm = (ratio - self._upper[: len(members)]).cummax(0).values
        return torch.maximum(alarm, ratio - self._lower[: len(members)]).amin(0).clamp(-_FAR, _FAR)

    def until_alarm(self, members: Tensor, label: Tensor) -> Tensor:
        """How far the evidence is from an alarm when the base label is `label` [N], in nats.

        An alarm counts where 'clean' was not decided before it.

        Args:
            members: Log-probabilities of all members [n, N, K].
            label: Base labels [N].
        """
        ratio = self.ratios(members, label, leaking=True)
        clean = (self._lower - ratio).cummax(0).values
        before = torch.cat([torch.full_like(clean[:1], -_FAR), clean[:-1]])
        early = torch.maximum(self._upper - ratio, before)
        end = torch.maximum(self._final_alarm - ratio[-1], clean[-1])
        return torch.minimum(early.amin(0), end).clamp(-_FAR, _FAR)

    def beyond(self, members: Tensor, label: Tensor) -> Tensor:
        """How far the evidence is beyond the nearer boundary after each member [n, N], in nats; negative: undecided.

        Args:
            members: Log-probabilities of the first members [k, N, K], k at most n.
            label: Base labels [N].
        """
        ratio, k = self.ratios(members, label, leaking=True), len(members)
        return torch.maximum(ratio - self._upper[:k], self._lower[:k] - ratio).clamp(-_FAR, _FAR)

    def ratios(self, members: Tensor, label: Tensor, *, leaking: bool = False) -> Tensor:
        """The log-likelihood ratio after each member [k, N], in nats.

        Args:
            members: Log-probabilities of the first members [k, N, K], k at most n.
            label: Base labels [N].
            leaking: Whether members that agree, all of whose scores are zero where the evidence is the margin, differ
                by how firmly they do: by less than 2 % of what they can say. A search for evidence needs it.
        """
        ratio = self._increments(members, label)
        if leaking and self._evidence == "margin":
            values = self._values[: len(members)]
            firm = -(_of(members, label) - _best_other(members, label)).clamp_min(0.0)
            ratio = ratio + 0.02 * (values.amax(1, keepdim=True) - values.amin(1, keepdim=True)) * firm / (1.0 - firm)
        return ratio.cumsum(0)

    def _increments(self, members: Tensor, label: Tensor) -> Tensor:
        asked = len(members)
        knots, values = self._knots[:asked], self._values[:asked]
        of_label = _of(members, label)
        score = -of_label if self._evidence == "surprise" else members.amax(2) - of_label  # [k, N]
        right = torch.searchsorted(knots, score.detach().contiguous()).clamp(1, knots.shape[1] - 1)
        x0, x1 = knots.gather(1, right - 1), knots.gather(1, right)
        y0, y1 = values.gather(1, right - 1), values.gather(1, right)
        inside = score.clamp(knots[:, :1], knots[:, -1:])
        return y0 + (y1 - y0) * (inside - x0) / (x1 - x0) + self._slope[:asked] * (score - inside)


def _of(members: Tensor, label: Tensor) -> Tensor:
    """Log-probabilities of labels [N], from those of members [k, N, K] -> [k, N]."""
    return members.gather(2, label[None, :, None].expand(len(members), -1, 1))[..., 0]


def _best_other(members: Tensor, label: Tensor) -> Tensor:
    """Log-probabilities of the best other labels [k, N]."""
    return members.scatter(2, label[None, :, None].expand(len(members), -1, 1), -torch.inf).amax(2)


def _knots(edges: np.ndarray) -> np.ndarray:
    """Middle of every bin [n, K], the outer bins as wide as their neighbours, strictly ascending.

    No score is negative, so the first bin does not reach below zero.
    """
    finite = np.clip(edges.astype(np.float64), -_FAR, _FAR)
    widths = np.diff(finite, axis=1) if finite.shape[1] > 1 else np.ones_like(finite)
    first, last = np.maximum(widths[:, :1], 0.2), np.maximum(widths[:, -1:], 0.2)
    middles = (finite[:, 1:] + finite[:, :-1]) / 2
    lowest = np.maximum(finite[:, :1] - first / 2, np.minimum(finite[:, :1], 0.0))
    knots = np.concatenate([lowest, middles, finite[:, -1:] + last / 2], axis=1)
    steps = np.maximum(np.diff(knots, axis=1), 1e-3)
    return np.concatenate([knots[:, :1], knots[:, :1] + np.cumsum(steps, axis=1)], axis=1)
