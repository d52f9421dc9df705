"""What a network says of many images, and where it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from s2ap_train.attacks.accuracy import Array
from s2ap_train.attacks.right_images import in_batches
from s2ap_train.models.modes import device_of, evaluation_mode

Model = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] in [0, 1] -> logits [N, K], differentiable; a module is put into evaluation mode meanwhile."""


def logits(model: Model, images: Array, *, batch_size: int = 512) -> Tensor:
    """Logits [N, K] of images [N, C, H, W], in evaluation mode, without gradient, on the CPU."""
    device = device_of(model)
    with evaluation_mode(model):
        return in_batches(lambda x: model(x.to(device)).cpu(), torch.as_tensor(images), batch_size)


def predictions(model: Model, images: Array, *, batch_size: int = 512) -> Tensor:
    """Predicted class of each image, int64 [N], on the CPU."""
    return logits(model, images, batch_size=batch_size).argmax(1)


def batches_of(rows: Tensor, size: int) -> list[Tensor]:
    """The rows of a tensor in order, at most `size` at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
