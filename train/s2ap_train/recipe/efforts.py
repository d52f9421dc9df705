"""How much the recipe `photos` does for each `--effort`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["EFFORTS", "Effort", "Work"]

Effort = Literal["quick", "standard", "full"]


@dataclass(frozen=True)
class Work:
    """How much an effort does.

    Attributes:
        flops: That the adversarial training of the classifier may take; its steps follow from what the network costs.
        least, most: Gradient steps of that training.
        passes: The most that it goes over the training images.
        small_batch: Images a step of jurors and sensors; few images need small batches, or nothing is learnt.
        small_steps: Gradient steps of a juror's first training.
        attack_steps: Of every adversarial training.
        jurors, sensors: Members.
        juror_width: Channels of a juror's first block at the most.
        score_steps: Gradient steps of the score model.
        score_width: Channels of its first level, which decide what every attack through the purifier costs; None: as
            many as images of this size get.
        samples: Images that decisions are attacked on.
        steps: Gradient steps of these attacks.
        evaluated: Test images of the closing table.
        budget: Of the attacks on them.
        images: The most that are trained on.
    """

    flops: float
    least: int
    most: int
    passes: int
    small_batch: int
    small_steps: int
    attack_steps: int
    jurors: int
    sensors: int
    juror_width: int
    score_steps: int
    score_width: int | None
    samples: int
    steps: int
    evaluated: int
    budget: str
    images: int


EFFORTS: Mapping[Effort, Work] = {
    "quick": Work(
        flops=2e12,
        least=60,
        most=400,
        passes=25,
        small_batch=32,
        small_steps=700,
        attack_steps=2,
        jurors=3,
        sensors=2,
        juror_width=16,
        score_steps=300,
        score_width=16,
        samples=30,
        steps=6,
        evaluated=40,
        budget="quick",
        images=10_000,
    ),
    "standard": Work(
        flops=4e13,
        least=400,
        most=6000,
        passes=40,
        small_batch=64,
        small_steps=2500,
        attack_steps=2,
        jurors=4,
        sensors=2,
        juror_width=24,
        score_steps=2500,
        score_width=None,
        samples=150,
        steps=10,
        evaluated=150,
        budget="standard",
        images=50_000,
    ),
    "full": Work(
        flops=4e15,
        least=2000,
        most=60_000,
        passes=100,
        small_batch=128,
        small_steps=20_000,
        attack_steps=7,
        jurors=6,
        sensors=4,
        juror_width=48,
        score_steps=20_000,
        score_width=None,
        samples=300,
        steps=15,
        evaluated=1000,
        budget="full",
        images=1_000_000,
    ),
}
