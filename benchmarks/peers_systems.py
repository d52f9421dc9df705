"""What a user would pick instead of a defended file: each a function of images that gives labels and flags.

Networks run in PyTorch eager, on one thread, as their methods were published; nothing is copied. Their settings are
their papers', scaled to images of 8x8 where a paper gives none for such.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from s2ap_defend.bench.asked import SAID, Stages
from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.engines import Engine
from s2ap_defend.sequential.wald import paper_levels, wald_boundaries, wald_increments
from s2ap_defend.stages import CLASSIFIER, PURIFIER, member_scope
from s2ap_defend.types import Bool, Float32, Int64
from s2ap_train.purifier.purify import Score

PAPER_RATE = 0.05
"""False alarms and misses of the published test, and false alarms of those that are calibrated here."""
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Answers:
    """What a system says of N images.

    Attributes:
        label: Labels [N].
        flagged: Flagged, or not answered [N].
        evaluations: Runs of a network for an image, mean.
    """

    label: Int64
    flagged: Bool
    evaluations: float


class System(Protocol):
    """Answers for images [N, C, H, W]."""

    def __call__(self, images: Float32) -> Answers:
        """Labels and flags."""


@dataclass(frozen=True)
class OnEngine:
    """A classifier alone on ONNX Runtime."""

    engine: Engine

    def __call__(self, images: Float32) -> Answers:
        """Its labels, never flagged."""
        return _unflagged(self.engine.run({"image": images}, SAID)[0].argmax(axis=1), 1)


@dataclass(frozen=True)
class Defended:
    """A defended file; `at_once` images a call, all where it is None."""

    classifier: DefendedClassifier
    at_once: int | None = None

    def __call__(self, images: Float32) -> Answers:
        """Its verdicts; what it does not answer counts as flagged."""
        step = self.at_once or len(images)
        parts = [self.classifier(images[i : i + step]) for i in range(0, len(images), step)]
        label, flagged, used = (
            np.concatenate(values)
            for values in zip(
                *((one.label, one.adversarial | one.abstained, one.members_used) for one in parts), strict=True
            )
        )
        return Answers(label, flagged, 1.0 + float(used.mean()))


@dataclass(frozen=True)
class Purified:
    """A classifier behind something that is done to images, and the runs of a network that this takes."""

    classifier: Network
    purify: Callable[[Tensor], Tensor]
    evaluations: int

    def __call__(self, images: Float32) -> Answers:
        """Its labels, never flagged."""
        with torch.no_grad():
            labels = self.classifier(self.purify(torch.from_numpy(images))).argmax(dim=1).numpy()
        return _unflagged(labels, 1 + self.evaluations)


@dataclass(frozen=True)
class Diffusion:
    """DiffPure's way (Nie et al. 2022, arXiv 2205.07460) with a score network: noise, then back in many steps.

    The reverse process is sampled ancestrally over noise levels at equal ratios, as diffusion models in this scaling
    are (Karras et al. 2022, arXiv 2206.00364); net(x, sigma) estimates the noise.

    Attributes:
        net: The score network.
        start: Noise level that images are brought to, pixels.
        end: The last noise level.
        steps: Runs of the network.
        seed: Of the noise.
    """

    net: Score
    start: float
    end: float
    steps: int
    seed: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0, 1]."""
        random = torch.Generator().manual_seed(self.seed)
        levels = [*np.geomspace(self.start, self.end, self.steps).tolist(), 0.0]
        z = images + self.start * torch.randn(images.shape, generator=random)
        for level, following in pairwise(levels):
            noise = self.net(z, level)
            fresh = following * math.sqrt(1 - (following / level) ** 2)
            remaining = math.sqrt(following**2 - fresh**2)
            z = z - level * noise + remaining * noise + fresh * torch.randn(images.shape, generator=random)
        return z.clamp(0, 1)


@dataclass(frozen=True)
class Smoothed:
    """Randomised smoothing (Cohen et al. 2019, arXiv 1902.02918): the class that wins among noisy copies.

    Attributes:
        classifier: The network.
        sigma: Of the noise, pixels.
        samples: Copies of an image.
        level: It abstains where the two leading classes could be equally likely at this level.
        seed: Of the noise.
    """

    classifier: Network
    sigma: float
    samples: int = 100
    level: float = 0.001
    seed: int = 0

    def __call__(self, images: Float32) -> Answers:
        """Its labels; flagged where it abstains."""
        random = torch.Generator().manual_seed(self.seed)
        labels, flagged = np.zeros(len(images), dtype=np.int64), np.zeros(len(images), dtype=bool)
        with torch.no_grad():
            for i, image in enumerate(torch.from_numpy(images)):
                noise = torch.randn((self.samples, *image.shape), generator=random)
                said = self.classifier(image + self.sigma * noise)
                counts = np.bincount(said.argmax(dim=1).numpy(), minlength=said.shape[1])
                second, first = np.sort(counts)[-2:].tolist()
                labels[i] = counts.argmax()
                flagged[i] = binomtest(first, first + second, 0.5).pvalue > self.level
        return Answers(labels, flagged, float(self.samples))


@dataclass
class SerialTest:
    """The published serial protocol (Wang et al. 2021, IEEE Access; its test is that of Wang et al. 2019, ICSE).

    One image after the other, one member after the other: each vote for or against the classifier's label moves Wald's
    ratio until a boundary is reached, and its sign decides where none is. A flagged image gets the label that most of
    the asked members gave it.

    Attributes:
        classifier: The network.
        members: In the order in which they are asked.
        clean: Clean images that set the levels [N, C, H, W].
    """

    classifier: Network
    members: Sequence[Network]
    clean: Float32
    agrees: float = field(init=False)
    disagrees: float = field(init=False)

    def __post_init__(self) -> None:
        """Set the levels as the paper does."""
        with torch.no_grad():
            x = torch.from_numpy(self.clean)
            label = self.classifier(x).argmax(dim=1)
            others = torch.stack([member(x).argmax(dim=1) != label for member in self.members])
        self.agrees, self.disagrees = wald_increments(*paper_levels(others.double().mean(dim=0).numpy()))

    def __call__(self, images: Float32) -> Answers:
        """Labels and flags, image by image."""
        with torch.no_grad():
            found = [self._one(image[None]) for image in torch.from_numpy(images)]
        label, flagged, asked = zip(*found, strict=True)
        return Answers(np.array(label, dtype=np.int64), np.array(flagged, dtype=bool), 1.0 + float(np.mean(asked)))

    def _one(self, image: Tensor) -> tuple[int, bool, int]:
        lower, upper = wald_boundaries(PAPER_RATE, PAPER_RATE)
        answer, ratio, votes = int(self.classifier(image).argmax()), 0.0, []
        for member in self.members:
            votes.append(int(member(image).argmax()))
            ratio += self.agrees if votes[-1] == answer else self.disagrees
            if not lower < ratio < upper:
                break
        flagged = ratio > 0
        return (max(sorted(set(votes)), key=votes.count) if flagged else answer), flagged, len(votes)


@dataclass
class WholeEnsemble:
    """All stages of a file for every image, without a test: flagged where more members disagree than on clean images.

    Attributes:
        stages: Of the file, on engines.
        clean: Clean images that set the limit [N, C, H, W].
    """

    stages: Stages
    clean: Float32
    limit: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        """Set the limit to the rate of disagreement that no more than PAPER_RATE of the clean images exceed."""
        _, rates = self._votes(self.clean)
        rank = math.ceil((1 - PAPER_RATE) * (len(rates) + 1))
        self.limit = float(np.sort(rates)[min(rank, len(rates)) - 1])

    def __call__(self, images: Float32) -> Answers:
        """The label that most members give, all with one vote."""
        labels, rates = self._votes(images)
        return Answers(labels, rates > self.limit, float(len(self.stages.engines)))

    def _votes(self, images: Float32) -> tuple[Int64, np.ndarray]:
        engines, manifest = self.stages.engines, self.stages.manifest
        purified = images
        if PURIFIER in engines:
            (purified,) = engines[PURIFIER].run({"image": images}, ["purified"])
        answer = engines[CLASSIFIER].run({"image": purified}, SAID)[0].argmax(axis=1)
        votes = np.stack(
            [
                engines[member_scope(i)]
                .run({"image": images if member.sees == "raw" else purified}, SAID)[0]
                .argmax(axis=1)
                for i, member in enumerate(manifest.members)
            ]
        )
        counts = (votes[:, :, None] == np.arange(len(manifest.classes))).sum(axis=0)
        return counts.argmax(axis=1), (votes != answer).mean(axis=0)


def _unflagged(labels: np.ndarray, evaluations: int) -> Answers:
    return Answers(np.asarray(labels, dtype=np.int64), np.zeros(len(labels), dtype=bool), float(evaluations))
