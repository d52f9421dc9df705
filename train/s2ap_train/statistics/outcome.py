"""What a system answers to attacked images, as everything counts it."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from s2ap_defend.types import Bool, Float64, Int64


@dataclass(frozen=True)
class Outcome:
    """What a system answers to N attacked images.

    Attributes:
        label: Final label [N].
        flagged: Whether the input was called adversarial [N].
        abstained: Whether the system gave no answer [N]: that is no success of the attacker, and no right label.
        members_used: Members asked [N].
        score: How far the attacker is from success [N]: negative exactly where the image is answered, not flagged, and
            its label is wrong. Larger is further away.
        evidence: Log-likelihood ratio when the test stopped [N], in nats; None: the system does not tell.
        margin: By how much the final label is right [N], whoever gave it, in the units of who did; 0 where it is wrong.
            None: the system does not tell.
        not_asked: Members that the test can ask and did not [N]; None: the system does not tell.
    """

    label: Int64
    flagged: Bool
    abstained: Bool
    members_used: Int64
    score: Float64
    evidence: Float64 | None = None
    margin: Float64 | None = None
    not_asked: Int64 | None = None

    @property
    def success(self) -> Bool:
        """Images with which the attacker won [N]: answered, not flagged, and the final label is wrong."""
        return np.asarray(self.score < 0.0)

    def right(self, labels: Int64) -> Bool:
        """Images that got an answer, and the right one [N]; flagged or not."""
        return np.asarray(~self.abstained & (self.label == labels))

    def rows(self, index: Bool | Int64) -> "Outcome":
        """Return the chosen images."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        chosen: dict[str, Any] = {name: None if value is None else value[index] for name, value in values.items()}
        return Outcome(**chosen)
