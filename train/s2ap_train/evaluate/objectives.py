"""What a gradient attack minimises, per sample. Zero or below means: the attacker's model of the defence is beaten.

c is the classifier's log-probabilities [N, K], m the members' [n, N, K], y the true labels [N], t target labels [N].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.sequential import SequentialTest

_FAR = 1e4


@dataclass(frozen=True)
class Objective:
    """A loss with what it needs.

    Attributes:
        name: For the report.
        members: How many members it asks, in order; 0 for none, None for all.
        loss: (c, m, y, t) -> loss per sample [N].
    """

    name: str
    members: int | None
    loss: Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]


def margin(log_probabilities: Tensor, y: Tensor) -> Tensor:
    """Log-probability of y less that of the best other label [N]."""
    of_label = log_probabilities.gather(1, y[:, None])[:, 0]
    return of_label - _best_other(log_probabilities, y)


def targeted_margin(log_probabilities: Tensor, t: Tensor) -> Tensor:
    """Log-probability of the best other label less that of t [N]."""
    return _best_other(log_probabilities, t) - log_probabilities.gather(1, t[:, None])[:, 0]


def difference_of_logits_ratio(log_probabilities: Tensor, y: Tensor) -> Tensor:
    """Margin over the distance of the first from the third largest logit [N]; Croce and Hein 2020, equation 6."""
    if log_probabilities.shape[1] < 3:
        return margin(log_probabilities, y)
    ordered = log_probabilities.sort(dim=1, descending=True).values
    return margin(log_probabilities, y) / (ordered[:, 0] - ordered[:, 2]).clamp_min(1e-12)


def mean_log_probability(c: Tensor, m: Tensor | None) -> Tensor:
    """Mean log-probability of classifier and members [N, K]; the classifier weighs a quarter at least."""
    if m is None or len(m) == 0:
        return c
    share = max(1.0 / (len(m) + 1), 0.25)
    return share * c + (1.0 - share) * m.mean(0)


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

    def excess(self, members: Tensor, label: Tensor) -> Tensor:
        """How far the evidence lies above what is answered unflagged when the base label is `label` [N], in nats.

        The attacker may stop the test early at 'clean' or reach the end; the easier of the two counts. Where the
        undecided abstain, the end is no way out.
        """
        ratio = self._increments(members, label).cumsum(0)  # [n, N]
        alarm = (ratio - self._upper).cummax(0).values
        early = torch.maximum(alarm, ratio - self._lower)
        end = torch.maximum(alarm[-1], ratio[-1] - self._final)
        return torch.minimum(early.amin(0), end).clamp(-_FAR, _FAR)

    def _increments(self, members: Tensor, label: Tensor) -> Tensor:
        of_label = members.gather(2, label[None, :, None].expand(len(members), -1, 1))[..., 0]
        score = -of_label if self._evidence == "surprise" else members.amax(2) - of_label  # [n, N]
        right = torch.searchsorted(self._knots, score.detach().contiguous()).clamp(1, self._knots.shape[1] - 1)
        x0, x1 = self._knots.gather(1, right - 1), self._knots.gather(1, right)
        y0, y1 = self._values.gather(1, right - 1), self._values.gather(1, right)
        inside = score.clamp(self._knots[:, :1], self._knots[:, -1:])
        return y0 + (y1 - y0) * (inside - x0) / (x1 - x0) + self._slope * (score - inside)


def classifier_objective(kind: Literal["cross_entropy", "dlr", "margin"]) -> Objective:
    """Objective (a): the classifier alone; whoever fools only it leaves the members to object."""
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "cross_entropy": lambda c, y: c.gather(1, y[:, None])[:, 0],
        "dlr": difference_of_logits_ratio,
        "margin": margin,
    }
    loss = losses[kind]
    return Objective(f"classifier {kind}", 0, lambda c, m, y, t: loss(c, y))  # noqa: ARG005


def agreement_objective(members: int | None = None) -> Objective:
    """Objective (b): one wrong label for classifier and members, by the margin of their mean log-probability."""

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        return margin(mean_log_probability(c, m), y)

    return Objective("agreement" if members is None else f"agreement of {members}", members, loss)


def targeted_agreement_objective() -> Objective:
    """Objective (b) towards one label: the worst margin and the mean margin of classifier and members."""

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        return targeted_margin(c, t).clamp_min(-1.0) + targeted_margin(mean_log_probability(c, m), t)

    return Objective("targeted agreement", None, loss)


def evidence_objective(surrogate: EvidenceSurrogate, *, weight: float = 1.0, slack: float = 0.2) -> Objective:
    """Objective (c): the classifier says t, and the evidence stays below the alarm.

    Both parts are hinges with some slack, so the gradient serves whichever is not reached yet (after Bryniarski et
    al. 2021, arXiv 2106.15023); a little agreement keeps a direction where both are flat.

    Args:
        surrogate: Of the sequential test.
        weight: Of the evidence, against nats of the classifier's margin.
        slack: Nats by which both parts are exceeded.
    """

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        if m is None:
            return targeted_margin(c, t)
        wrong = (targeted_margin(c, t) + slack).clamp_min(0.0)
        alarm = (surrogate.excess(m, t) + slack).clamp_min(0.0)
        return wrong + weight * alarm + 0.05 * targeted_margin(mean_log_probability(c, m), t)

    return Objective(f"evidence x{weight:g}", None, loss)


def _best_other(log_probabilities: Tensor, label: Tensor) -> Tensor:
    return log_probabilities.scatter(1, label[:, None], -torch.inf).amax(1)


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
