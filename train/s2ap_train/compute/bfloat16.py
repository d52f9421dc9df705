"""Convolutions and products in bfloat16, where half the bits are twice the speed and the rest stays exact."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["in_bfloat16", "widened"]


def in_bfloat16(device: torch.device, *, wanted: bool = True) -> AbstractContextManager[object]:
    """Inside it convolutions and products of matrices take and give bfloat16; if it is not wanted, nothing changes."""
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def widened(values: Tensor) -> Tensor:
    """The values in float32 if they are in bfloat16, as they are otherwise."""
    return values.float() if values.dtype is torch.bfloat16 else values
