"""What the defence answers: one row per image in every array."""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

Resize = Literal["crop", "stretch", "pad"]
"""How an image of another size is resized: crop cuts the largest central part of the wanted shape out first, stretch
takes the whole image, whatever its shape, pad fits the whole image in and puts black around it."""


@dataclass(frozen=True)
class Verdicts:
    """The outputs of a defended model for N images of K classes, in the order of the model file.

    Attributes:
        label: Final label [N]: the answer of those who were asked, or what the input gets where it was flagged.
        adversarial: Whether the input was flagged [N]: by the sequential test, or because a pixel is outside [0, 1].
        base_label: The classifier's own label on what it sees [N].
        probabilities: The classifier's softmax on what it sees [N, K].
        label_change_rate: Share of the asked members whose label differs from the first answer [N], in [0, 1].
        log_likelihood_ratio: Evidence for 'adversarial' when the test stopped [N], in nats.
        members_used: Members asked, those asked only for the vote included [N].
        votes: Weight of the jurors' votes for each class [N, K].
        purified: What the purifier made of the image [N, C, H, W], in [0, 1]; the image where it was not purified.
        reconstruction_error: Expected squared reconstruction error of the last purification step [N]; 0 where the image
            was not purified.
        abstained: Whether the defence gives no answer [N]: flagged in a model that rejects instead of correcting,
            undecided in one that abstains then, or a pixel is not a finite number. Nobody should rely on `label` then.
    """

    label: Int64
    adversarial: Bool
    base_label: Int64
    probabilities: Float32
    label_change_rate: Float32
    log_likelihood_ratio: Float64
    members_used: Int64
    votes: Float64
    purified: Float32
    reconstruction_error: Float32
    abstained: Bool

    FIELDS: ClassVar[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def corrected(self) -> Bool:
        """Inputs that were flagged, answered, and given another label than the classifier's [N]."""
        return np.asarray(self.adversarial & ~self.abstained & (self.label != self.base_label))

    def rows(self, index: slice | Int64) -> "Verdicts":
        """Return the chosen rows of every array."""
        return Verdicts(**{name: getattr(self, name)[index] for name in self.FIELDS})

    @classmethod
    def concatenate(cls, parts: "list[Verdicts]") -> "Verdicts":
        """Join verdicts along the rows; at least one part is needed."""
        if len(parts) == 1:
            return parts[0]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.FIELDS})


Verdicts.FIELDS = tuple(field.name for field in fields(Verdicts))
