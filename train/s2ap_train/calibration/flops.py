"""Floating-point operations of a clean image: what a decision costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from s2ap_defend.sequential import SequentialTest, StageAnswers, accepted_raw, run_sequential_test
from s2ap_defend.types import Int64

__all__ = ["StageFlops", "clean_flops"]


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


def clean_flops(flops: StageFlops, test: SequentialTest, said: StageAnswers) -> float:
    """Floating-point operations of one image, the mean over images: members in whole waves.

    Args:
        flops: Of the stages.
        test: The test that asks them.
        said: What they say of the images. Where only what is not accepted in the opening is purified, the classifier is
            asked again behind the purifier; members that see the purified image are asked there alone.
    """
    ends = np.cumsum(test.waves)
    asked = ends[np.searchsorted(ends, run_sequential_test(test, said).members_used)]
    members = np.concatenate([[0], flops.members.cumsum()])[asked]
    behind = flops.purifier if said.on_raw is None else ~accepted_raw(test, said) * (flops.purifier + flops.classifier)
    return float(np.mean(flops.classifier + behind + members))
