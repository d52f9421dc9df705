"""Order, augmentation and learning rate: what every training loop draws and counts alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from s2ap_defend.errors import RecipeError
from s2ap_train.compute import LOCAL, Compute
from s2ap_train.training.config import TrainingConfig
from s2ap_train.training.losses import start_noise


class Batch(NamedTuple):
    """One process's part of a batch.

    `x` are augmented images [n, C, H, W], `y` their labels [n], `start` the noise that their attack starts with (None
    without an attack). A mean loss over x times `weight`, averaged over processes, is the mean over the whole batch;
    for one process `weight` is 1.
    """

    x: Tensor
    y: Tensor
    start: Tensor | None
    weight: float


def draw_batch(
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    config: TrainingConfig,
    generator: torch.Generator,
    compute: Compute = LOCAL,
) -> Batch:
    """Augment the batch of these rows and take this process's part of it.

    All that is random is drawn for the whole batch, so that the generators of all processes stay alike and the number
    of processes does not change what is trained on.

    Raises:
        RecipeError: If the batch has fewer images than there are processes.
    """
    check_shareable(len(rows), compute)
    x, y = augment(images[rows], config, generator), labels[rows]
    start = start_noise(x, config, generator)
    if compute.world_size == 1:
        return Batch(x, y, start, 1.0)
    part = compute.share(x)
    weight = len(part) * compute.world_size / len(rows)
    return Batch(part, compute.share(y), None if start is None else compute.share(start), weight)


def check_shareable(count: int, compute: Compute) -> None:
    """Refuse a batch that leaves a process without an image.

    Raises:
        RecipeError: If the batch has fewer images than there are processes.
    """
    if count < compute.world_size:
        raise RecipeError(
            f"a batch of {count} images cannot be shared by {compute.world_size} processes; "
            "raise batch_size or use fewer devices"
        )


@contextmanager
def global_random_state(seed: int, epoch: int) -> Iterator[None]:
    """Within this context what layers draw for themselves, such as dropout, depends on seed and epoch only.

    So a resumed run draws what an unbroken one does; the global random state is as before afterwards.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed * 100_003 + epoch)
        yield


def batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """A random order of `count` rows in batches of at most `size`, all about equal: none is too small to normalise."""
    order = torch.randperm(count, generator=generator)
    return list(order.tensor_split(math.ceil(count / size)))


def cosine(start: float, epoch: float, epochs: int) -> float:
    """A value that falls from `start` to 0 over `epochs` along half a cosine; `epoch` may be fractional."""
    return start * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def augment(images: Tensor, config: TrainingConfig, generator: torch.Generator) -> Tensor:
    """Training images [N, C, H, W], flipped and shifted at random as the config says."""
    return shifted(flipped(images, generator) if config.flip else images, config.shift, generator)


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [N, C, H, W] mirrored left to right with probability 1/2, independently."""
    chosen = torch.randint(0, 2, (len(images), 1, 1, 1), generator=generator).to(images.device)
    return torch.where(chosen.bool(), images.flip(3), images)


def shifted(images: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Each image [N, C, H, W] moved by up to `largest` pixels both ways, independently; what moves in is 0."""
    if not largest:
        return images
    height, width = images.shape[-2:]
    offsets = torch.randint(0, 2 * largest + 1, (2, len(images), 1), generator=generator).to(images.device)
    rows = (offsets[0] + torch.arange(height, device=images.device))[:, None, :, None]  # [N, 1, H, 1]
    columns = (offsets[1] + torch.arange(width, device=images.device))[:, None, None, :]  # [N, 1, 1, W]
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    padded = pad(images, (largest,) * 4)
    return padded[image, channel, rows, columns]


def apply_masks(parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set every weight to exactly 0 where its mask is False.

    Raises:
        RecipeError: If a mask names no parameter or has another shape.
    """
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise RecipeError(
                f"no weight of shape {tuple(mask.shape)} is named {name!r}; masks belong to another architecture"
            )
        with torch.no_grad():
            parameters[name].masked_fill_(~mask, 0.0)
