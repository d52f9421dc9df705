"""Who answers, and what is read in the opening: what calibration of the sequential test takes as given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import Answer, Correction, SequentialTest, SignalName, first_answers, voted_label
from s2ap_defend.types import Float64, Int64
from s2ap_train.calibration.answers import Answers

__all__ = ["Jury", "jury_label"]


@dataclass(frozen=True)
class Jury:
    """Votes and answer of a decision; members are numbered as they were trained.

    Attributes:
        vote_weights: Weight of each member's vote [n], multiples of 1/256 in [0, 1]; sensors have 0.
        opening: Members that every input is asked first, in this order; empty where the classifier answers alone and
            the order is free.
        answer: Who gives the label of an input that is not flagged, as in SequentialTest.
        jury_share: Of the mix.
        amplification: Of the mix.
        await_vote: Whether 'clean' waits for a settled vote; only for the answer 'robust'.
        signals: Evidence that costs no member, counted with the opening.
        correction: What a flagged input gets, unless it is rejected.
        left_out: Members that are not asked, and no part of the file.

    Raises:
        RecipeError: If the opening repeats a member, names one that is not there, or is empty where jurors answer.
    """

    vote_weights: tuple[float, ...]
    opening: tuple[int, ...]
    answer: Answer = "robust"
    jury_share: float = 1.0
    amplification: float = 1.0
    await_vote: bool = False
    signals: tuple[SignalName, ...] = ()
    correction: Correction = "correct"
    left_out: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        members = len(self.vote_weights)
        if not self.opening and self.answer == "accurate":
            return
        if not self.opening or len({*self.opening}) < len(self.opening) or not {*self.opening} <= {*range(members)}:
            raise RecipeError(f"the opening is {self.opening}; expected different members from 0 to {members - 1}")
        if {*self.left_out} & {*self.opening}:
            raise RecipeError(
                f"the opening is {self.opening}, of which {self.left_out} are left out; ask one or the other"
            )

    @classmethod
    def behind_classifier(cls, members: int) -> Jury:
        """The classifier answers, and every member has one vote on what is flagged."""
        return cls((1.0,) * members, (), "accurate")

    def measured(self, answers: Answers) -> Answers:
        """Answers of members as they were trained, measured against what classifier and opening say together."""
        if not self.opening:
            return replace(answers, first=np.asarray(answers.said.classifier.argmax(axis=1), dtype=np.int64))
        opened = answers.said.reorder(np.array(self.opening, dtype=np.int64))
        return replace(answers, first=first_answers(self.unflagged(self.opening), opened))

    def unflagged(self, members: Sequence[int] | None = None) -> SequentialTest:
        """The decision that asks all of these members and never flags: the answer alone.

        Args:
            members: As they were trained, in the order in which they are asked; None: all of them.
        """
        asked = np.arange(len(self.vote_weights)) if members is None else np.array(members, dtype=np.int64)
        n = len(asked)
        return SequentialTest(
            evidence="margin",
            edges=np.zeros((n, 1), dtype=np.float32),
            increments=np.zeros((n, 2)),
            lower=np.full(n, -np.inf),
            upper=np.full(n, np.inf),
            final_threshold=np.inf,
            waves=(n,),
            vote_weights=self.weights_in(asked),
            answer=self.answer,
            jury_share=self.jury_share,
            amplification=self.amplification,
            opening=n,
            correction="reject",
        )

    def corrects(self, wanted: Literal["correct", "reject"]) -> Correction:
        """What a flagged input gets where `detection.correction` is `wanted`."""
        return wanted if wanted == "reject" else self.correction

    @property
    def asked(self) -> list[int]:
        """Members that may be asked, as they were trained."""
        return [i for i in range(len(self.vote_weights)) if i not in self.left_out]

    def order(self, rest: Sequence[int]) -> Int64:
        """The opening, then the others as they come in `rest`."""
        return np.array([*self.opening, *(i for i in rest if i not in self.opening)], dtype=np.int64)

    def weights_in(self, order: Int64) -> Float64:
        """Vote weights of the members in the order in which they are asked."""
        return np.array(self.vote_weights, dtype=np.float64)[order]


def jury_label(answers: Answers, vote_weights: Float64) -> Int64:
    """Label that the whole jury votes for [N].

    Args:
        answers: Of members that see what they see.
        vote_weights: In the members' order [n].
    """
    logs = answers.said.members.astype(np.float64)
    votes = np.zeros(logs.shape[1:])
    for weight, labels in zip(vote_weights, logs.argmax(axis=-1), strict=True):
        votes[np.arange(len(answers)), labels] += weight
    return voted_label(votes.T, (vote_weights[:, None, None] * logs).sum(axis=0).T)
