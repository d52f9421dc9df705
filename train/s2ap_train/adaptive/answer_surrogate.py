"""Who gives the label, with a slope: how far the answer of a defence is from a label.

c is the classifier's log-probabilities [N, K], m those of the first members that are asked [k, N, K], t labels [N].
"""

import math

import torch
from torch import Tensor

from s2ap_defend.sequential import SequentialTest
from s2ap_train.adaptive.margins import targeted_margin

__all__ = ["AnswerSurrogate"]


class AnswerSurrogate:
    """The answer of a decision, were nothing flagged, and the vote of its jury on what is, as differentiable functions.

    A vote has no slope, so it is replaced by the voters' margins: the cheapest of them that make up more than half of
    the weight decide how far it is from a label. A label may win with less where three or more are voted for: what
    counts is always checked on the file.

    Args:
        test: The decision.
        device: Where the log-probabilities are.
    """

    def __init__(self, test: SequentialTest, device: torch.device) -> None:
        self._test = test
        self._weights = torch.tensor(test.vote_weights, dtype=torch.float32, device=device)
        self._total = float(test.vote_weights.sum())

    @property
    def corrects(self) -> bool:
        """Whether the vote of the whole jury is the label of what is flagged."""
        return self._test.correction == "correct"

    def gap(self, c: Tensor, m: Tensor | None, t: Tensor) -> Tensor:
        """How far the answer is from t [N], in nats; negative: it is t.

        'mixed': by the margin of the log of the very mix that the decision takes. 'accurate': by the classifier's
        margin. 'robust': by that of the last voter that a majority of the weight asked needs; of the whole jury's
        weight where 'clean' waits for the vote.
        """
        if self._by_vote(m):
            margins, _, needed = self._cheapest(m, t, whole=self._test.await_vote)
            return torch.where(needed, margins, -torch.inf).amax(0)
        return targeted_margin(self.scores(c, m), t)

    def hinge(self, c: Tensor, m: Tensor | None, t: Tensor, slack: float) -> Tensor:
        """The gap with some slack, 0 where it is closed [N], in nats; of a vote the mean over the voters it needs."""
        if self._by_vote(m):
            return self._short(m, t, slack, whole=self._test.await_vote)
        return (self.gap(c, m, t) + slack).clamp_min(0.0)

    def vote_hinge(self, m: Tensor, t: Tensor, slack: float) -> Tensor:
        """The same of the whole jury's vote, which is the label of what is flagged [N], in nats."""
        return self._short(m, t, slack, whole=True)

    def scores(self, c: Tensor, m: Tensor | None) -> Tensor:
        """What the answer is the largest of [N, K]; of a vote the mean log-probability, which breaks its ties."""
        test, jurors = self._test, self.jurors(m)
        if jurors is None or test.answer == "accurate" or (test.answer == "mixed" and test.jury_share == 0.0):
            return c
        if test.answer == "robust":
            return self.vote_scores(c, m)
        weights = self._weights_of(m)[:, None, None]
        mean = torch.logsumexp(jurors + weights.log(), 0) - weights.sum().log()
        amplified = (test.amplification * mean).log_softmax(1)
        if test.jury_share == 1.0:
            return amplified
        return torch.logaddexp(math.log(1.0 - test.jury_share) + c, math.log(test.jury_share) + amplified)

    def vote_scores(self, c: Tensor, m: Tensor | None) -> Tensor:
        """The jurors' mean log-probability by weight [N, K]: what leads the vote; the classifier's without jurors."""
        jurors = self.jurors(m)
        if jurors is None:
            return c
        weights = self._weights_of(m)[:, None, None]
        return (weights * jurors).sum(0) / weights.sum()

    def first_answer(self, c: Tensor, m: Tensor | None) -> Tensor:
        """The label that evidence is measured against [N]; it has no gradient."""
        with torch.no_grad():
            opening = None if m is None else m[: self._test.opening]
            scores = self.scores(c, opening)
            jurors = self.jurors(opening) if self._by_vote(opening) else None
            if jurors is not None:
                voted = torch.nn.functional.one_hot(jurors.argmax(2), c.shape[1])  # [j, N, K]
                votes = (self._weights_of(opening)[:, None, None] * voted).sum(0)
                scores = torch.where(votes == votes.amax(1, keepdim=True), scores, -torch.inf)
            return scores.argmax(1)

    def aim(self, c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:
        """The label aimed at [N]: t, and where that is y, no target: the best other label of the answer."""
        with torch.no_grad():
            best = self.scores(c, m).scatter(1, y[:, None], -torch.inf).argmax(1)
        return torch.where(t == y, best, t)

    def jurors(self, m: Tensor | None) -> Tensor | None:
        """The log-probabilities of those members that have a vote [j, N, K]; None: none was asked."""
        if m is None:
            return None
        voting = self._weights[: len(m)] > 0.0
        return m[voting] if bool(voting.any()) else None

    def _by_vote(self, m: Tensor | None) -> bool:
        return self._test.answer == "robust" and self.jurors(m) is not None

    def _weights_of(self, m: Tensor | None) -> Tensor:
        """Weights of the jurors among the members asked [j]."""
        asked = self._weights[: 0 if m is None else len(m)]
        return asked[asked > 0.0]

    def _cheapest(self, m: Tensor | None, t: Tensor, *, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(margins of the jurors from t, ascending; their weights; whether a majority needs them), each [j, N]."""
        jurors, weights = self.jurors(m), self._weights_of(m)
        if jurors is None:
            raise ValueError("no juror was asked, so there is no vote")
        margins, order = targeted_margin(jurors, t).sort(0)
        ordered = weights[order]
        before = ordered.cumsum(0) - ordered
        half = (self._total if whole else float(weights.sum())) / 2.0
        return margins, ordered, before <= half

    def _short(self, m: Tensor | None, t: Tensor, slack: float, *, whole: bool) -> Tensor:
        margins, weights, needed = self._cheapest(m, t, whole=whole)
        counted = weights * needed
        return (counted * (margins + slack).clamp_min(0.0)).sum(0) / counted.sum(0)
