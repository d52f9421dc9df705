"""What a gradient attack minimises, per sample. Zero or below means: the attacker's model of the defence is beaten.

c is the classifier's log-probabilities [N, K], m the members' [n, N, K], y the true labels [N], t target labels [N];
where t is y there is no target, and the best other label of the answer is aimed at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softsign

from s2ap_train.adaptive.answer_surrogate import AnswerSurrogate
from s2ap_train.adaptive.evidence_surrogate import EvidenceSurrogate
from s2ap_train.adaptive.margins import difference_of_logits_ratio, margin, mean_log_probability, targeted_margin

__all__ = [
    "AnswerSurrogate",
    "EvidenceSurrogate",
    "Objective",
    "agreement_objective",
    "alarm_objective",
    "answer_objective",
    "bypass_objective",
    "classifier_objective",
    "delay_objective",
    "difference_of_logits_ratio",
    "evidence_objective",
    "flag_then_flip_objective",
    "jury_objective",
    "margin",
    "mean_log_probability",
    "targeted_agreement_objective",
    "targeted_margin",
    "vote_objective",
]

_SLACK = 0.2  # nats by which a term is exceeded
_PULL = 0.05  # weight of a mean margin, a direction where the surrogate is satisfied and the file is not


@dataclass(frozen=True)
class Objective:
    """A loss with what it needs.

    Attributes:
        name: For the report.
        members: How many members it asks, in order; 0 for none, None for all.
        loss: (c, m, y, t) -> loss per sample [N].
        aims: (c, m) -> scores [N, K] by which wrong labels are ranked before one is aimed at; None: the mean of c and
            of the mean of m, of all members.
    """

    name: str
    members: int | None
    loss: Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]
    aims: Callable[[Tensor, Tensor | None], Tensor] | None = None


def classifier_objective(kind: Literal["cross_entropy", "dlr", "margin"]) -> Objective:
    """The classifier alone; whoever fools only it leaves the members to object."""
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "cross_entropy": lambda c, y: c.gather(1, y[:, None])[:, 0],
        "dlr": difference_of_logits_ratio,
        "margin": margin,
    }
    loss = losses[kind]
    return Objective(f"classifier {kind}", 0, lambda c, m, y, t: loss(c, y))  # noqa: ARG005


def agreement_objective(members: int | None = None) -> Objective:
    """One wrong label for classifier and members, by the margin of their mean log-probability."""

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        return margin(mean_log_probability(c, m), y)

    return Objective("agreement" if members is None else f"agreement of {members}", members, loss)


def targeted_agreement_objective(members: int | None = None) -> Objective:
    """The same towards one label: the classifier's margin, and the mean margin of classifier and members."""

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        return targeted_margin(c, t).clamp_min(-1.0) + targeted_margin(mean_log_probability(c, m), t)

    return Objective("targeted agreement" if members is None else f"targeted agreement of {members}", members, loss)


def answer_objective(answer: AnswerSurrogate, *, slack: float = _SLACK) -> Objective:
    """The answer is t, flagged or not.

    Args:
        answer: Of the decision.
        slack: Nats by which it is exceeded.
    """

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:
        aim = answer.aim(c, m, y, t)
        return answer.hinge(c, m, aim, slack) + _PULL * targeted_margin(answer.scores(c, m), aim)

    return Objective("answer", None, loss, answer.scores)


def jury_objective(answer: AnswerSurrogate) -> Objective:
    """Every juror says t: the worst margin, and the mean margin, of all that have a vote.

    Args:
        answer: Of the decision.
    """

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:
        aim, jurors = answer.aim(c, m, y, t), answer.jurors(m)
        if jurors is None:
            return targeted_margin(c, aim)
        return targeted_margin(jurors, aim).amax(0).clamp_min(-1.0) + targeted_margin(jurors.mean(0), aim)

    return Objective("jury", None, loss, answer.vote_scores)


def evidence_objective(
    answer: AnswerSurrogate, evidence: EvidenceSurrogate, *, weight: float = 1.0, slack: float = _SLACK
) -> Objective:
    """The answer is t, and the evidence stays below the alarm.

    Both terms are hinges with some slack, so the gradient serves whichever is not reached yet (after Bryniarski et
    al. 2021, arXiv 2106.15023); a little agreement keeps a direction where both are flat.

    Args:
        answer: Of the decision.
        evidence: Of the same.
        weight: Of the evidence, against nats of the answer's margin.
        slack: Nats by which both terms are exceeded.
    """
    return _unflagged(f"evidence x{weight:g}", None, answer, evidence.excess, weight, slack)


def bypass_objective(
    answer: AnswerSurrogate, evidence: EvidenceSurrogate, members: int, *, slack: float = _SLACK
) -> Objective:
    """The answer of the classifier and these first members is t, and they already call it clean; no other is asked.

    Args:
        answer: Of the decision.
        evidence: Of the same.
        members: How many are asked.
        slack: Nats by which both terms are exceeded.
    """
    return _unflagged(f"bypass after {members}", members, answer, evidence.until_clean, 1.0, slack)


def vote_objective(answer: AnswerSurrogate, evidence: EvidenceSurrogate, *, slack: float = _SLACK) -> Objective:
    """The whole jury's vote is t, and it counts: the answer is t, too, or the input is flagged.

    Args:
        answer: Of the decision.
        evidence: Of the same.
        slack: Nats by which every term is exceeded.
    """

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:
        if m is None:
            return targeted_margin(c, t)
        aim = answer.aim(c, m, y, t)
        counts = torch.minimum(answer.gap(c, m, aim), evidence.until_alarm(c, m, answer.first_answer(c, m)))
        return answer.vote_hinge(m, aim, slack) + (counts + slack).clamp_min(0.0) + _PULL * _jury_margin(answer, m, aim)

    return Objective("vote", None, loss, answer.vote_scores)


def flag_then_flip_objective(
    answer: AnswerSurrogate, evidence: EvidenceSurrogate, *, slack: float = _SLACK
) -> Objective:
    """The input is flagged, whatever the first answer is, and the whole jury's vote, which then counts, is t.

    The shape of the cascade attack (Mangal et al. 2022, arXiv 2206.00278): what hands the input on is raised, and what
    it is handed to is fooled.

    Args:
        answer: Of the decision.
        evidence: Of the same.
        slack: Nats by which both terms are exceeded.
    """

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:
        if m is None:
            return targeted_margin(c, t)
        aim = answer.aim(c, m, y, t)
        alarm = evidence.until_alarm(c, m, answer.first_answer(c, m))
        return answer.vote_hinge(m, aim, slack) + (alarm + slack).clamp_min(0.0) + _PULL * _jury_margin(answer, m, aim)

    return Objective("flag then flip", None, loss, answer.vote_scores)


def alarm_objective(
    answer: AnswerSurrogate, evidence: EvidenceSurrogate, *, slack: float = _SLACK, keep: float = 10.0
) -> Objective:
    """The answer, and the vote on what is flagged, keep the true label, and the evidence rises above the alarm.

    Args:
        answer: Of the decision.
        evidence: Of the same.
        slack: Nats by which the alarm is exceeded, and four times those that the label keeps.
        keep: Weight of the label's term: it holds on clean images and is nothing to trade.
    """

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        kept = keep * answer.hinge(c, m, y, slack / 4)
        if m is None:
            return kept
        if answer.corrects:
            kept = kept + keep * answer.vote_hinge(m, y, slack / 4)
        return kept + (evidence.until_alarm(c, m, y) + slack).clamp_min(0.0) + _PULL * margin(m.mean(0), y)

    return Objective("alarm", None, loss)


def delay_objective(
    answer: AnswerSurrogate, evidence: EvidenceSurrogate, members: int, *, slack: float = _SLACK
) -> Objective:
    """The evidence stays between the boundaries until this many members were asked, whatever the answer is.

    Inside them a small, bounded pull further in keeps a direction where the surrogate is satisfied and the file is not.

    Args:
        answer: Of the decision.
        evidence: Of the same.
        members: How many are to be asked: the evidence of all but the last must not decide.
        slack: Nats by which each stays inside.
    """

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
        if m is None or len(m) == 0:
            return c.sum(1) * 0.0
        beyond = evidence.beyond(c, m, answer.first_answer(c, m))
        return ((beyond + slack).clamp_min(0.0) + _PULL * softsign(beyond)).mean(0)

    return Objective(f"delay until {members}", members - 1, loss)


def _unflagged(
    name: str,
    members: int | None,
    answer: AnswerSurrogate,
    gap: Callable[[Tensor, Tensor, Tensor], Tensor],
    weight: float,
    slack: float,
) -> Objective:
    """The answer is t, and the gap of the evidence against it is closed, (c, m, t) -> nats [N]."""

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:
        aim = answer.aim(c, m, y, t)
        if m is None:
            return targeted_margin(c, aim)
        flagged = (gap(c, m, aim) + slack).clamp_min(0.0)
        pull = _PULL * targeted_margin(mean_log_probability(c, m), aim)
        return answer.hinge(c, m, aim, slack) + weight * flagged + pull

    return Objective(name, members, loss)


def _jury_margin(answer: AnswerSurrogate, m: Tensor, t: Tensor) -> Tensor:
    jurors = answer.jurors(m)
    return targeted_margin((m if jurors is None else jurors).mean(0), t)
