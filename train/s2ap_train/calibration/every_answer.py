"""What every stage says of raw and of purified images: the answers of any wiring, asked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.sequential import StageAnswers

__all__ = ["EveryAnswer"]


@dataclass(frozen=True)
class EveryAnswer:
    """What classifier and members say of the same images as they came, and behind the purifier.

    Attributes:
        raw: Of the images as they came.
        purified: Of the images behind the purifier, with its reconstruction error.
    """

    raw: StageAnswers
    purified: StageAnswers

    @classmethod
    def asked(cls, ask: Callable[[Sees, Purify], StageAnswers]) -> EveryAnswer:
        """Ask every stage twice.

        Args:
            ask: Asks the classifier and every member about the image that all members see, (what, purify) -> answers.
        """
        return cls(ask("raw", "off"), ask("purified", "always"))

    def wired(self, sees: Sequence[Sees], purify: Purify) -> StageAnswers:
        """The answers where members see this, and these images are purified."""
        if purify == "off":
            return self.raw
        members = [
            self.purified.members[i] if seen == "purified" else self.raw.members[i] for i, seen in enumerate(sees)
        ]
        return StageAnswers(
            classifier=self.purified.classifier,
            members=np.stack(members),
            on_raw=self.raw.classifier if purify == "suspicious" else None,
            reconstruction_error=self.purified.reconstruction_error,
        )
