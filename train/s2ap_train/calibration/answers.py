"""What the classifier and its members said of a set of inputs."""

from dataclasses import dataclass

import numpy as np

from s2ap_defend.sequential import NEAR_TIE, member_scores
from s2ap_defend.types import Bool, Float32, Float64, Int64


@dataclass(frozen=True)
class Answers:
    """What the classifier and all members said of one set of inputs.

    Attributes:
        log_probabilities: Members' log-probabilities on the purified images [n, N, K].
        base_label: The classifier's label [N].
        label: True label [N]; base_label where it is not known and nothing asks for it.
        image: Number of the image that an input was made of [N]: equal for an image and its attacked copies, so that
            they are never in different folds. None numbers the inputs themselves.
    """

    log_probabilities: Float32
    base_label: Int64
    label: Int64
    image: Int64 | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def members(self) -> int:
        """Number of members n."""
        return len(self.log_probabilities)

    def keep(self, rows: Bool | Int64) -> "Answers":
        """Return the chosen inputs."""
        image = None if self.image is None else self.image[rows]
        return Answers(self.log_probabilities[:, rows], self.base_label[rows], self.label[rows], image)

    def reorder(self, order: Int64) -> "Answers":
        """Return the answers of the chosen members, in this order."""
        return Answers(self.log_probabilities[order], self.base_label, self.label, self.image)

    @property
    def images(self) -> Int64:
        """Number of the image that each input was made of [N]."""
        return np.arange(len(self), dtype=np.int64) if self.image is None else self.image

    @property
    def right(self) -> Bool:
        """Inputs that the classifier gets right [N]."""
        return np.asarray(self.base_label == self.label)

    @property
    def disagreements(self) -> Bool:
        """Whether each member's label differs from the base label [n, N]; near-ties agree."""
        return np.asarray(member_scores("margin", self.log_probabilities, self.base_label) >= NEAR_TIE)

    @property
    def disagreement_rates(self) -> Float64:
        """Share of inputs on which each member's label differs from the base label [n]."""
        return np.asarray(self.disagreements.mean(axis=1), dtype=np.float64)
