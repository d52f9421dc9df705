"""Floating-point operations of a clean image: what a decision costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from s2ap_defend.sequential import SequentialTest, StageAnswers, accepted_raw, run_sequential_test
from s2ap_defend.types import Float64, Int64

__all__ = ["StageCosts", "StageFlops", "clean_flops", "image_costs"]


@dataclass(frozen=True)
class StageFlops:
    """Floating-point operations of one image in every stage, a multiply-add counted as 2.

    Convolutions and matrix products only; zeros in weights are counted like other numbers.

    Attributes:
        purifier: 0 where there is none.
        classifier: Of the classifier.
        members: Of each member [n], in the order in which they are asked.
    """

    purifier: int
    classifier: int
    members: Int64


class StageCosts(Protocol):
    """What one image costs in every stage, in any one unit: operations, or time."""

    @property
    def purifier(self) -> float:
        """0 where there is none."""

    @property
    def classifier(self) -> float:
        """Of the classifier."""

    @property
    def members(self) -> Int64 | Float64:
        """Of each member [n], in the order in which they are asked."""


def image_costs(stages: StageCosts, test: SequentialTest, said: StageAnswers) -> Float64:
    """What each image costs [N], in the unit of the stages: members in whole waves.

    Args:
        stages: Of one image.
        test: The test that asks them.
        said: What they say of the images. Where only what is not accepted in the opening is purified, the classifier is
            asked again behind the purifier; members that see the purified image are asked there alone.
    """
    ends = np.cumsum(test.waves)
    asked = ends[np.searchsorted(ends, run_sequential_test(test, said).members_used)]
    members = np.concatenate([[0], stages.members.cumsum()])[asked]
    again = stages.purifier + stages.classifier
    behind = stages.purifier if said.on_raw is None else ~accepted_raw(test, said) * again
    return np.asarray(stages.classifier + behind + members, dtype=np.float64)


def clean_flops(flops: StageFlops, test: SequentialTest, said: StageAnswers) -> float:
    """Floating-point operations of one image, the mean of `image_costs`."""
    return float(image_costs(flops, test, said).mean())
