"""Accuracy of a classifier, on clean images and under attack."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from s2ap_train.attacks.pgd import pgd
from s2ap_train.compute.memory import images_at_once
from s2ap_train.models.modes import device_of, evaluation_mode

Array = Tensor | np.ndarray


def accuracy(model: Callable[[Tensor], Tensor], images: Array, labels: Array, *, batch_size: int = 512) -> float:
    """Fraction of images whose largest logit is the label's; a module is put into evaluation mode meanwhile."""
    return _fraction_right(model, images, labels, lambda x, _: x, batch_size)


def robust_accuracy(
    model: Callable[[Tensor], Tensor],
    images: Array,
    labels: Array,
    *,
    eps: float,
    steps: int = 20,
    step_size: float | None = None,
    seed: int = 0,
    batch_size: int = 512,
) -> float:
    """Fraction of images still classified as their label after `pgd`: an upper bound of the robust accuracy.

    Args:
        model: Images [N, C, H, W] in [0, 1] -> logits [N, K].
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: Labels, int64 [N].
        eps: Radius of the attack, pixels.
        steps: Gradient steps.
        step_size: Length of a step, pixels; None = 2.5 eps / steps.
        seed: Of the random start.
        batch_size: Images attacked at once.
    """
    generator = torch.Generator().manual_seed(seed)
    length = 2.5 * eps / steps if step_size is None else step_size

    def attack(x: Tensor, y: Tensor) -> Tensor:
        return pgd(model, x, y, eps=eps, steps=steps, step_size=length, generator=generator)

    return _fraction_right(model, images, labels, attack, batch_size)


def _fraction_right(
    model: Callable[[Tensor], Tensor],
    images: Array,
    labels: Array,
    attack: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
) -> float:
    all_images, all_labels = on_device(device_of(model), images, labels)
    right, size = 0, images_at_once(batch_size, all_images.shape)
    with evaluation_mode(model):
        for start in range(0, len(all_images), size):
            x, y = all_images[start : start + size], all_labels[start : start + size]
            attacked = attack(x, y)
            with torch.no_grad():
                right += int((model(attacked).argmax(1) == y).sum())
    return right / len(all_images)


def on_device(device: torch.device, images: Array, labels: Array) -> tuple[Tensor, Tensor]:
    """Images and labels, from NumPy or torch, as tensors on a device."""
    return torch.as_tensor(images).to(device), torch.as_tensor(labels).to(device)


def image_shape(images: Array) -> tuple[int, int, int]:
    """(C, H, W) of images [N, C, H, W]."""
    _, channels, height, width = images.shape
    return int(channels), int(height), int(width)
