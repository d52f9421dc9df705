"""What a gradient attack minimises, per sample. Zero or below means: the attacker's model of the defence is beaten.

c is the classifier's log-probabilities [N, K], m the members' [n, N, K], y the true labels [N], t target labels [N].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softsign

from s2ap_train.adaptive.evidence_surrogate import EvidenceSurrogate

__all__ = [
    "EvidenceSurrogate",
    "Objective",
    "agreement_objective",
    "alarm_objective",
    "bypass_objective",
    "classifier_objective",
    "delay_objective",
    "difference_of_logits_ratio",
    "evidence_objective",
    "margin",
    "mean_log_probability",
    "targeted_agreement_objective",
    "targeted_margin",
    "vote_objective",
]


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


def targeted_agreement_objective(members: int | None = None) -> Objective:
    """Objective (b) towards one label: the worst margin and the mean margin of classifier and members."""

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        return targeted_margin(c, t).clamp_min(-1.0) + targeted_margin(mean_log_probability(c, m), t)

    return Objective("targeted agreement" if members is None else f"targeted agreement of {members}", members, loss)


def evidence_objective(surrogate: EvidenceSurrogate, *, weight: float = 1.0, slack: float = 0.2) -> Objective:
    """Objective (c): the classifier says t, and the evidence stays below the alarm.

    Both terms are hinges with some slack, so the gradient serves whichever is not reached yet (after Bryniarski et
    al. 2021, arXiv 2106.15023); a little agreement keeps a direction where both are flat.

    Args:
        surrogate: Of the sequential test.
        weight: Of the evidence, against nats of the classifier's margin.
        slack: Nats by which both terms are exceeded.
    """
    return _unflagged(f"evidence x{weight:g}", None, surrogate.excess, weight, slack)


def bypass_objective(surrogate: EvidenceSurrogate, members: int, *, slack: float = 0.2) -> Objective:
    """The classifier says t, and these first members already call it clean; what others would say is not asked.

    A little agreement keeps a direction where the surrogate is satisfied and the file is not.

    Args:
        surrogate: Of the sequential test.
        members: How many are asked.
        slack: Nats by which both terms are exceeded.
    """
    return _unflagged(f"bypass after {members}", members, surrogate.until_clean, 1.0, slack)


def vote_objective(surrogate: EvidenceSurrogate, members: int, *, slack: float = 0.2) -> Objective:
    """Most of the voting members say t, and the vote counts: the classifier says t, too, or the input is flagged.

    Args:
        surrogate: Of the sequential test.
        members: How many vote.
        slack: Nats by which every term is exceeded.
    """

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:
        if m is None:
            return targeted_margin(c, t)
        votes = m[:members]
        against = targeted_margin(votes.flatten(0, 1), t.repeat(len(votes))).reshape(len(votes), -1)
        most = against.sort(0).values[: len(votes) // 2 + 1]
        counts = torch.minimum(targeted_margin(c, t), surrogate.until_alarm(m, y))
        return (most + slack).clamp_min(0.0).mean(0) + (counts + slack).clamp_min(0.0) + 0.05 * against.mean(0)

    return Objective(f"vote of {members}", None, loss)


def alarm_objective(surrogate: EvidenceSurrogate, *, slack: float = 0.2, keep: float = 10.0) -> Objective:
    """The classifier keeps the true label, and the evidence rises above the alarm.

    A little of the members' mean margin keeps a direction where the surrogate is satisfied and the file is not.

    Args:
        surrogate: Of the sequential test.
        slack: Nats by which the alarm is exceeded, and four times those that the classifier keeps.
        keep: Weight of the classifier's term: it holds on clean images and is nothing to trade.
    """

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        kept = keep * (slack / 4 - margin(c, y)).clamp_min(0.0)
        if m is None:
            return kept
        return kept + (surrogate.until_alarm(m, y) + slack).clamp_min(0.0) + 0.05 * margin(m.mean(0), y)

    return Objective("alarm", None, loss)


def delay_objective(surrogate: EvidenceSurrogate, members: int, *, slack: float = 0.2) -> Objective:
    """The evidence stays between the boundaries until this many members were asked, whatever the classifier says.

    Inside them a small, bounded pull further in keeps a direction where the surrogate is satisfied and the file is not.

    Args:
        surrogate: Of the sequential test.
        members: How many are to be asked: the evidence of all but the last must not decide.
        slack: Nats by which each stays inside.
    """

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        if m is None or len(m) == 0:
            return c.sum(1) * 0.0
        beyond = surrogate.beyond(m, c.argmax(1))
        return ((beyond + slack).clamp_min(0.0) + 0.05 * softsign(beyond)).mean(0)

    return Objective(f"delay until {members}", members - 1, loss)


def _unflagged(
    name: str, members: int | None, gap: Callable[[Tensor, Tensor], Tensor], weight: float, slack: float
) -> Objective:
    """The classifier says t, and the gap of the members' evidence is closed, (m, t) -> nats [N]."""

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        if m is None:
            return targeted_margin(c, t)
        wrong = (targeted_margin(c, t) + slack).clamp_min(0.0)
        flagged = (gap(m, t) + slack).clamp_min(0.0)
        return wrong + weight * flagged + 0.05 * targeted_margin(mean_log_probability(c, m), t)

    return Objective(name, members, loss)


def _best_other(log_probabilities: Tensor, label: Tensor) -> Tensor:
    return log_probabilities.scatter(1, label[:, None], -torch.inf).amax(1)
