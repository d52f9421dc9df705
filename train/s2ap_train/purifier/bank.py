"""The fixed bank of noise directions over which the purifier averages."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["hadamard_bank", "largest_bank"]


def largest_bank(shape: tuple[int, int, int]) -> int:
    """The most directions that `hadamard_bank` has for images (C, H, W)."""
    return 2 * _order(shape)


def hadamard_bank(size: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Antithetic directions of +1 and -1, float32 [size, C, H, W]: the second half is the negated first.

    The first half are rows of a Sylvester-Hadamard matrix, drawn without repetition and multiplied by one random
    pattern of signs, cut to C*H*W columns: exactly orthogonal where that is a power of two. Odd moments of the bank
    vanish, so a minimum of the averaged error is not biased. The bank is stored in the model file and is no secret.

    Raises:
        ValueError: Unless `size` is even, positive and at most twice the order of the matrix.
    """
    dimension, order = math.prod(shape), _order(shape)
    if size < 2 or size % 2 or size // 2 > order:
        raise ValueError(f"a bank for images {shape} needs an even size of 2 to {2 * order}, found {size}")
    random = np.random.default_rng(seed)
    rows = random.choice(order, size // 2, replace=False)
    signs = random.choice(np.array([-1.0, 1.0]), dimension)
    common = np.bitwise_count(rows[:, None] & np.arange(dimension)[None, :])  # [size / 2, d]
    half = np.where(common % 2 == 0, signs, -signs).astype(np.float32).reshape(-1, *shape)
    return torch.from_numpy(np.concatenate([half, -half]))


def _order(shape: tuple[int, int, int]) -> int:
    """Order of the smallest Sylvester-Hadamard matrix with a column for every pixel."""
    return 1 << (math.prod(shape) - 1).bit_length()
