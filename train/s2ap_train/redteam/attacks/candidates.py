"""What attackers do with images that they found: bring them into the ball, and keep the best of several."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from s2ap_defend.types import Float32
from s2ap_train.adaptive.regions import Norm, ball_around
from s2ap_train.adaptive.search import Search
from s2ap_train.adaptive.systems import System
from s2ap_train.data import ImageSet

__all__ = ["best_of", "into_ball"]


def best_of(system: System, data: ImageSet, candidates: Mapping[str, Float32]) -> tuple[Float32, dict[str, int]]:
    """(Per image the candidate of the least score, how many images each candidate broke that none before it had).

    Args:
        system: What is attacked; every candidate is one query per image.
        data: Clean images and true labels.
        candidates: Attacked images float32 [N, C, H, W] in [0, 1], by name; one at the least. Of equal scores the first
            is kept.

    Raises:
        ValueError: Without a candidate.
    """
    if not candidates:
        raise ValueError("the best of no candidates was asked for")
    search = Search(system, data, eps=0.0)  # no descent: only what is offered is tried
    broken_by = {name: search.offer(images) for name, images in candidates.items()}
    return search.best, broken_by


def into_ball(attacked: Float32, images: Float32, radius: float, norm: Norm) -> Float32:
    """The nearest images [N, C, H, W] that lie in [0, 1] and within a distance of the clean ones.

    Args:
        attacked: Float32 [N, C, H, W].
        images: Clean images, like `attacked`.
        radius: Of the ball, pixels in [0, 1].
        norm: Of the ball.
    """
    inside: Float32 = ball_around(torch.from_numpy(images), radius, norm).project(torch.from_numpy(attacked)).numpy()
    return inside
