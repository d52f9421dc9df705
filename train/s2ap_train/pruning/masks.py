"""Masks of kept weights: True = kept. How they are cut from scores, counted and compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Masks = Mapping[str, Tensor]


def kept_count(size: int, keep_ratio: float) -> int:
    """Weights that a layer keeps: size - int((1 - keep_ratio) * size), HYDRA's count, and at least one."""
    return max(1, size - int((1 - keep_ratio) * size))


def top_k_mask(scores: Tensor, keep_ratio: float) -> Tensor:
    """Mask of the largest |scores| of one layer, any shape, exactly `kept_count` of them.

    Chosen by index and not by a threshold, so equal scores do not change the count.

    Raises:
        ValueError: Unless 0 < keep_ratio <= 1.
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio is {keep_ratio}; it must be above 0 and at most 1")
    return largest_mask(scores, kept_count(scores.numel(), keep_ratio))


def largest_mask(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest |scores|, of the scores' shape."""
    return largest_values(scores.abs(), count)


def largest_values(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest values as they are, signed, of the values' shape."""
    flat = values.flatten()
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(count, sorted=False).indices] = True
    return mask.reshape(values.shape)


def sparsity(masks: Masks) -> float:
    """Fraction of all weights under masks that are zero, of the total and not the mean of layers.

    Biases and batch normalisation are not masked and do not count.
    """
    return 1 - sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


def hamming(before: Masks, after: Masks) -> float:
    """Fraction of positions at which two masks differ, over all layers."""
    return _differing(before, after) / sum(m.numel() for m in before.values())


def flip_rate(before: Masks, after: Masks) -> float:
    """Fraction of kept weights that another mask replaces by others: differing positions / (2 * kept).

    The Hamming distance on the scale of the kept weights: 0 = the same mask, 1 = nothing in common, at any sparsity.
    Both masks must keep the same number.
    """
    return _differing(before, after) / (2 * sum(int(m.sum()) for m in before.values()))


def _differing(before: Masks, after: Masks) -> int:
    return sum(int((mask ^ after[name]).sum()) for name, mask in before.items())
