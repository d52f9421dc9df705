"""What every stage says of raw and of purified images: the answers of any wiring, asked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.sequential import StageAnswers

__all__ = ["EveryAnswer"]


class EveryAnswer:
    """What classifier and members say of the same images as they came, and behind the purifier.

    Each is asked when it is first read: where nothing is purified the purifier, which costs most, is not run.

    Args:
        ask: Asks the classifier and every member about the image that all members see, (what, purify) -> answers.
    """

    def __init__(self, ask: Callable[[Sees, Purify], StageAnswers]) -> None:
        self._ask = ask

    @cached_property
    def raw(self) -> StageAnswers:
        """Of the images as they came."""
        return self._ask("raw", "off")

    @cached_property
    def purified(self) -> StageAnswers:
        """Of the images behind the purifier, with its reconstruction error."""
        return self._ask("purified", "always")

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
