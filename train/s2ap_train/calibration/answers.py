"""What the stages of a model said of a set of inputs."""

from dataclasses import dataclass, replace

import numpy as np

from s2ap_defend.sequential import NEAR_TIE, SequentialTest, StageAnswers, first_answers, member_scores
from s2ap_defend.types import Bool, Float64, Int64


@dataclass(frozen=True)
class Answers:
    """What classifier and members said of one set of inputs.

    Attributes:
        said: The answers of the stages.
        first: The label that evidence is measured against [N]: see `measured_by`.
        label: True label [N]; `first` where it is not known and nothing asks for it.
        image: Number of the image that an input was made of [N]: equal for an image and its attacked copies, so that
            they are never in different folds. None numbers the inputs themselves.
    """

    said: StageAnswers
    first: Int64
    label: Int64
    image: Int64 | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def members(self) -> int:
        """Number of members n."""
        return len(self.said.members)

    def keep(self, rows: Bool | Int64) -> "Answers":
        """Return the chosen inputs."""
        image = None if self.image is None else self.image[rows]
        return Answers(self.said.rows(rows), self.first[rows], self.label[rows], image)

    def reorder(self, order: Int64) -> "Answers":
        """Return the answers of the chosen members, in this order."""
        return replace(self, said=self.said.reorder(order))

    def measured_by(self, test: SequentialTest) -> "Answers":
        """The same, measured against what the opening of a test answers."""
        return replace(self, first=first_answers(test, self.said))

    @property
    def images(self) -> Int64:
        """Number of the image that each input was made of [N]."""
        return np.arange(len(self), dtype=np.int64) if self.image is None else self.image

    @property
    def right(self) -> Bool:
        """Inputs whose first answer is right [N]."""
        return np.asarray(self.first == self.label)

    @property
    def disagreements(self) -> Bool:
        """Whether each member's label differs from the first answer [n, N]; near-ties agree."""
        return np.asarray(member_scores("margin", self.said.members, self.first) >= NEAR_TIE)

    @property
    def disagreement_rates(self) -> Float64:
        """Share of inputs on which each member's label differs from the first answer [n]; 0 without inputs."""
        return np.asarray(self.disagreements.sum(axis=1) / max(len(self), 1), dtype=np.float64)
