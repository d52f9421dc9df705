"""How much masks, and what the networks under them say, change between epochs or seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_train.pruning.masks import Masks, hamming


@dataclass(frozen=True)
class MaskDistance:
    """How far two masks are apart.

    Attributes:
        hamming: Differing positions over all positions. Small at high sparsity whatever happens.
        flip_rate: Differing positions over the number that the first keeps plus the number that the second keeps:
            0 = the same mask, 1 = nothing in common, at any sparsity. It is `masks.flip_rate` where both keep equally
            many.
        jaccard: Positions kept by both over positions kept by either: 1 = the same mask.
        chance: The flip rate to expect of two independent random masks that keep as many weights in every layer.
    """

    hamming: float
    flip_rate: float
    jaccard: float
    chance: float


@dataclass(frozen=True)
class Stability:
    """Distances of several pairs of masks, with their mean and sample standard deviation.

    `std` is None for one pair. The pairs of a set of seeds share masks, so it is no standard error of the mean.
    """

    distances: tuple[MaskDistance, ...]
    mean: MaskDistance
    std: MaskDistance | None

    def to_json(self) -> dict[str, Any]:
        """Every pair's flip rate and Hamming distance, mean and std, as JSON values."""
        return {
            "pairs": [asdict(distance) for distance in self.distances],
            "mean": asdict(self.mean),
            "std": None if self.std is None else asdict(self.std),
        }


def mask_distance(first: Masks, second: Masks) -> MaskDistance:
    """Distance of two masks (bool, by weight or channel group; True = kept) over all their positions.

    Raises:
        RecipeError: If the two do not name the same layers of the same shapes.
    """
    _check_same_layers(first, second)
    positions = sum(mask.numel() for mask in first.values())
    sizes = [(int(mask.sum()), int(second[name].sum()), mask.numel()) for name, mask in first.items()]
    kept = sum(a + b for a, b, _ in sizes)
    distance = hamming(first, second)
    differing = round(distance * positions)
    in_common = 2 * sum(a * b / size for a, b, size in sizes)
    return MaskDistance(
        hamming=distance,
        flip_rate=differing / kept if kept else 0.0,
        jaccard=(kept - differing) / (kept + differing) if kept else 1.0,
        chance=1 - in_common / kept if kept else 0.0,
    )


def consecutive(masks: Sequence[Masks]) -> Stability:
    """Stability over epochs: each epoch's mask against the one before it.

    Raises:
        RecipeError: If there are fewer than two masks, or they are of different layers.
    """
    return _stability("consecutive epochs", len(masks), itertools.pairwise(masks))


def pairwise(masks: Sequence[Masks]) -> Stability:
    """Stability over seeds: every mask against every other. Errors as in `consecutive`.

    Networks that were trained from different seeds number their channels differently, so their masks are expected to be
    about as far apart as chance; masks of different searches on one pretrained network are not.
    """
    return _stability("seeds", len(masks), itertools.combinations(masks, 2))


def agreement(predicted: Sequence[Tensor]) -> Tensor:
    """Share of images of which two networks' predictions (int64 [N] each, on the same images) agree, [M, M]."""
    stacked = torch.stack(list(predicted))  # [M, N]
    return (stacked[:, None] == stacked[None]).double().mean(-1)


def _stability(what: str, count: int, pairs: Iterable[tuple[Masks, Masks]]) -> Stability:
    if count < 2:
        raise RecipeError(f"stability over {what} compares masks, found {count}; give at least two")
    distances = tuple(mask_distance(first, second) for first, second in pairs)
    columns = {name: [getattr(d, name) for d in distances] for name in MaskDistance.__dataclass_fields__}
    return Stability(
        distances=distances,
        mean=MaskDistance(**{name: fmean(values) for name, values in columns.items()}),
        std=MaskDistance(**{name: stdev(values) for name, values in columns.items()}) if len(distances) > 1 else None,
    )


def _check_same_layers(first: Masks, second: Masks) -> None:
    differing = [
        name
        for name in sorted(first.keys() | second.keys())
        if name not in first or name not in second or first[name].shape != second[name].shape
    ]
    if differing:
        raise RecipeError(
            f"the masks are of different networks: {differing[0]!r} is not in both with the same shape; "
            "compare masks of one architecture and one structure"
        )
