"""Budgets of attacks: projection into the l_inf ball, and what an attack achieved at which distortion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from s2ap_defend.types import Bool, Float32, Int64
from s2ap_train.attacks.right_images import classified_right


@dataclass(frozen=True)
class Effect:
    """What an attack did to a classifier: success, and the distortion of the images that succeeded.

    Attributes:
        right: Images that the classifier got right before the attack.
        success: Share of them that it gets wrong after it; 0 if there were none.
        linf: Mean largest change of a value, pixels in [0, 1]; None if no image succeeded, as for the others.
        l2: Mean Euclidean length of the change, pixels in [0, 1].
        l0: Mean number of positions (row, column) of which any channel changed.
    """

    right: int
    success: float
    linf: float | None
    l2: float | None
    l0: float | None


def effect(classifier: Callable[[Tensor], Tensor], images: Float32, labels: Int64, attacked: Float32) -> Effect:
    """Success and distortion of attacked images [N, C, H, W], as the classifier sees them.

    Args:
        classifier: Images [N, C, H, W] in [0, 1] -> logits [N, K].
        images: Clean images, float32 [N, C, H, W].
        labels: True labels, int64 [N].
        attacked: Attacked images, float32 [N, C, H, W].
    """
    right = classified_right(classifier, images, labels)
    fooled = right & ~classified_right(classifier, attacked, labels)
    success = float(fooled.sum() / max(1, right.sum()))
    if not fooled.any():
        return Effect(int(right.sum()), success, None, None, None)
    linf, l2, l0 = (float(norm[fooled].mean()) for norm in distortion(images, attacked))
    return Effect(int(right.sum()), success, linf, l2, l0)


def distortion(images: Float32, attacked: Float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(l_inf, l2, l0) of the change of each image, float64 [N]; l0 counts positions, not channels."""
    change = attacked.astype(np.float64) - images
    flat = change.reshape(len(change), -1)
    moved: Bool = (change != 0).any(axis=1)
    return np.abs(flat).max(axis=1), np.sqrt((flat**2).sum(axis=1)), moved.sum(axis=(1, 2)).astype(np.float64)


def project(attacked: Float32, images: Float32, eps: float) -> Float32:
    """The nearest images inside the l_inf ball of radius eps and inside [0, 1]."""
    lower, upper = (images - eps).clip(0.0), (images + eps).clip(max=1.0)
    return attacked.clip(lower, upper).astype("float32")
