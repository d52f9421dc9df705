"""The attack that decides: for a wrong answer, by an attacker that knows the decision and every network in it.

The answer alone is attacked, whole jury and nothing flagged: what is found is then put to the calibrated test.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softsign

from s2ap_defend.types import Float32
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.objectives import Objective, margin, targeted_margin
from s2ap_train.adaptive.purified import UnflaggingSystem
from s2ap_train.adaptive.search import Descent, View, adaptive_attack
from s2ap_train.calibration import Jury
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet

__all__ = ["Attacked", "answer_logs", "attack_answer", "attack_in_words", "plan_against"]

_TINY = 1e-12


@dataclass(frozen=True)
class Attacked:
    """What is attacked, and with what work.

    Attributes:
        data: Images and labels.
        eps: l_inf budget, pixels in [0, 1].
        budget: Steps and targets.
        seed: Of the random starts.
    """

    data: ImageSet
    eps: float
    budget: AdaptiveBudget
    seed: int


def answer_logs(jury: Jury, c: Tensor, m: Tensor | None) -> Tensor:
    """Logarithms of shares [N, K] whose largest is the answer of the whole jury, and of the classifier in a mix.

    Of a vote a share is that of the votes, and holds, as less than the lightest vote, the jurors' mean probability: so
    ties go nearly as they do in a file.

    Args:
        jury: Who answers.
        c: Log-probabilities of the classifier [N, K].
        m: Those of the members, as they were trained [n, N, K].
    """
    if jury.answer == "accurate" or m is None:
        return c
    weights = torch.tensor(jury.vote_weights, dtype=m.dtype, device=m.device)[:, None, None]
    mean = (weights * m.exp()).sum(0) / weights.sum()
    if jury.answer == "mixed":
        amplified = mean.clamp_min(_TINY) ** jury.amplification
        amplified = amplified / amplified.sum(1, keepdim=True)
        return ((1.0 - jury.jury_share) * c.exp() + jury.jury_share * amplified + _TINY).log()
    votes = torch.zeros_like(m).scatter(2, m.argmax(2, keepdim=True), 1.0)
    lightest = weights[weights > 0].min()
    return (((weights * votes).sum(0) + 0.5 * lightest * mean) / weights.sum() + _TINY).log()


def plan_against(jury: Jury, budget: AdaptiveBudget) -> list[Descent]:
    """Descents on the answer: through the purifier and past it, from random points and from the best so far.

    Of a vote the answer has no slope: there each juror counts by m / (1 + |m|), m its margin, so that none is worth
    more than its vote.
    """
    answer = _answer(jury)
    together = Objective("jurors together", None, partial(_together, jury))
    plan = [
        Descent(together, "none", "random"),
        Descent(answer, "none", "best"),
        Descent(answer, "exact", "random"),
        *(Descent(answer, "exact", "best", target=rank) for rank in range(budget.targets)),
    ]
    if budget.thorough:
        plan += [Descent(answer, "none", "random", target=rank) for rank in range(budget.targets)]
        plan += [Descent(together, "exact", "best"), Descent(answer, "straight_through", "random", target=0)]
    return plan


def attack_answer(jury: Jury, view: View, attacked: Attacked, candidates: list[Float32]) -> Float32:
    """Images [N, C, H, W] nearest to a wrong answer of a jury.

    Args:
        jury: Who answers.
        view: Of classifier and members, as they were trained, each on what it sees.
        attacked: Images and work.
        candidates: Images that were found for others, tried first and used as starts.
    """
    with one_thread():
        return adaptive_attack(
            UnflaggingSystem(lambda images: answer_logs(jury, *view(images, "exact", None))),
            view,
            plan_against(jury, attacked.budget),
            attacked.data,
            eps=attacked.eps,
            budget=attacked.budget,
            seed=attacked.seed,
            candidates=candidates,
            goal="wrong label",
        ).images


def attack_in_words(budget: AdaptiveBudget) -> str:
    """What the attacker did, for the manifest."""
    return (
        f"Auto-PGD for a wrong answer of each choice, flagged or not, through the purifier and past it, towards "
        f"{budget.targets} wrong labels, {budget.steps} steps each; what was found for one choice is tried on all"
    )


def _answer(jury: Jury) -> Objective:
    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:
        aimed = bool((t != y).any())
        if jury.answer != "robust" or m is None:
            logs = answer_logs(jury, c, m)
            return targeted_margin(logs, t) if aimed else margin(logs, y)
        each = [targeted_margin(one, t) if aimed else margin(one, y) for one in m]
        weights = torch.tensor(jury.vote_weights, dtype=m.dtype, device=m.device)[:, None]
        return (weights * softsign(torch.stack(each))).sum(0) / weights.sum()

    return Objective(f"{jury.answer} answer", None, loss)


def _together(jury: Jury, c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
    """The margin of the jurors' weighted mean log-probability, of the classifier's where it answers alone."""
    if jury.answer == "accurate" or m is None:
        return margin(c, y)
    weights = torch.tensor(jury.vote_weights, dtype=m.dtype, device=m.device)[:, None, None]
    return margin((weights * m).sum(0) / weights.sum(), y)
