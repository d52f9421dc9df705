"""Images on their way through a file: what is known of them between two waves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from s2ap_defend.engines import Array
from s2ap_defend.images.arrays import are_pixels
from s2ap_defend.sequential import Path
from s2ap_defend.types import Bool, Float32, Int64, Verdicts

__all__ = ["Opened", "Rows", "Sane", "joined_rows", "sanitise"]


@dataclass(frozen=True)
class Sane:
    """Images without pixels that are no pixels; a graph does the same.

    Attributes:
        image: NaN is 0.5, then clamped to [0, 1]; valid images keep their bits [n, C, H, W].
        valid: Images whose pixels are all in [0, 1] [n]; None: all are.
        finite: Images whose pixels are all finite [n]; None: all are.
    """

    image: Float32
    valid: Bool | None = None
    finite: Bool | None = None


def sanitise(images: Float32) -> Sane:
    """Hide pixels that are no pixels from all stages, and say whose they were."""
    if are_pixels(images) or (images.min() >= 0.0 and images.max() <= 1.0):  # false where one is no number
        return Sane(images)
    pixels = (1, 2, 3)
    valid = np.asarray(((images >= 0.0) & (images <= 1.0)).all(axis=pixels))
    number = np.where(np.isnan(images), np.float32(0.5), images)
    return Sane(np.clip(number, np.float32(0), np.float32(1)), valid, np.asarray(np.isfinite(images).all(axis=pixels)))


@dataclass(frozen=True)
class Opened:
    """What is known of N images behind the first wave, before anything is decided.

    Attributes:
        sane: The images.
        purified: What the purifier made of them; the images where not all are purified [N, C, H, W].
        error: What it left [N]; 0 where it did not run.
        said: What the stages answered, by name.
    """

    sane: Sane
    purified: Float32
    error: Float32
    said: Mapping[str, Array]


@dataclass(frozen=True)
class Rows:
    """N images that wait for the same wave.

    Attributes:
        number: Which of all images they are [N].
        born: Number of the first image that came with each [N].
        image: As stages see it [N, C, H, W].
        purified: What the purifier made of it; `image` itself where nothing is purified.
        probabilities: The classifier's softmax on what it sees [N, K].
        reconstruction_error: What the purifier left [N].
        opening: Log-probabilities of the opening's members [N, o, K].
        path: Evidence and votes.
        valid: As in Sane [N]; None: all are.
        finite: As in Sane [N]; None: all are.
    """

    number: Int64
    born: Int64
    image: Float32
    purified: Float32
    probabilities: Float32
    reconstruction_error: Float32
    opening: Float32
    path: Path
    valid: Bool | None
    finite: Bool | None

    def __len__(self) -> int:
        return len(self.number)

    def take(self, index: Bool) -> "Rows":
        """The chosen rows."""
        if index.all():
            return self
        chosen: dict[str, Any] = {name: getattr(self, name)[index] for name in _ARRAYS}
        chosen |= {name: None if (own := getattr(self, name)) is None else own[index] for name in _CHECKS}
        image = chosen["image"]
        purified = image if self.purified is self.image else self.purified[index]
        return Rows(**chosen, purified=purified, path=self.path.rows(index))

    def join(self, others: "Sequence[Rows]") -> "Rows":
        """These rows and others that wait for the same wave."""
        if not others:
            return self
        everyone = (self, *others)
        joined: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in everyone]) for name in _ARRAYS}
        joined |= {name: _joined_checks([(getattr(one, name), len(one)) for one in everyone]) for name in _CHECKS}
        untouched = all(one.purified is one.image for one in everyone)
        purified = joined["image"] if untouched else np.concatenate([one.purified for one in everyone])
        return Rows(**joined, purified=purified, path=self.path.join([one.path for one in others]))

    def verdicts(self) -> Verdicts:
        """The verdicts, once nobody asks any more; the arrays are the caller's."""
        path = self.path
        label, adversarial, abstained = path.verdict()
        return Verdicts(
            label=label,
            adversarial=adversarial,
            base_label=np.asarray(path.classifier.argmax(axis=1), dtype=np.int64),
            probabilities=self.probabilities,
            label_change_rate=path.label_change_rate(),
            log_likelihood_ratio=path.ratio,
            members_used=path.used,
            votes=np.ascontiguousarray(path.votes),
            purified=self.purified.copy() if self.purified is self.image else self.purified,
            reconstruction_error=self.reconstruction_error,
            abstained=abstained if self.finite is None else abstained | ~self.finite,
        )


_CHECKS = ("valid", "finite")
_ARRAYS = tuple(one.name for one in fields(Rows) if one.name not in {"purified", "path", *_CHECKS})


def _joined_checks(parts: Sequence[tuple[Bool | None, int]]) -> Bool | None:
    """Checks of rows as one, each with how many rows they are; None where all of them passed."""
    if all(one is None for one, _ in parts):
        return None
    return np.concatenate([np.ones(count, dtype=bool) if one is None else one for one, count in parts])


def joined_rows(parts: Sequence[Rows]) -> Rows:
    """Rows that wait for the same wave as one."""
    return parts[0].join(parts[1:])
