"""Sparse topologies that do not come from weights: how many connections a layer gets, which, and how they move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from s2ap_train.pruning.masks import kept_count

LayerRatios = Literal["erk", "uniform"]


def layer_counts(shapes: Mapping[str, Sequence[int]], sparsity: float, ratios: LayerRatios) -> dict[str, int]:
    """Weights that each layer keeps, by name: `erdos_renyi_counts`, or `kept_count` of every layer ("uniform")."""
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    if ratios == "uniform":
        return {name: kept_count(size, 1 - sparsity) for name, size in sizes.items()}
    return erdos_renyi_counts(shapes, max(len(sizes), kept_count(sum(sizes.values()), 1 - sparsity)))


def erdos_renyi_counts(shapes: Mapping[str, Sequence[int]], kept: int) -> dict[str, int]:
    """Share `kept` weights among layers in proportion to the sum of their dimensions, up to the whole layer.

    The Erdos-Renyi kernel (Mocanu et al. 2018, arXiv 1707.04780; Evci et al. 2020, arXiv 1911.11134, section 3): the
    density of a convolution [O, I, kh, kw] is in proportion to (O + I + kh + kw) / (O I kh kw), that of a linear layer
    to (O + I) / (O I). Where that is more than the layer has, it is dense and the others share the rest. Fractions are
    rounded so that the counts add up exactly, the largest remainders up, and every layer gets at least one.

    Raises:
        ValueError: Unless `kept` is at least the number of layers and at most that of weights.
    """
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    if not len(sizes) <= kept <= sum(sizes.values()):
        raise ValueError(f"{kept} weights cannot be shared by {len(sizes)} layers of {sum(sizes.values())} weights")
    exact: dict[str, float] = {}
    while len(exact) < len(sizes):
        open_layers = [name for name in sizes if name not in exact]
        factor = (kept - sum(exact.values())) / sum(sum(shapes[name]) for name in open_layers)
        full = [name for name in open_layers if factor * sum(shapes[name]) >= sizes[name]]
        if not full:
            exact |= {name: factor * sum(shapes[name]) for name in open_layers}
        exact |= {name: float(sizes[name]) for name in full}
    counts = {name: max(1, int(exact[name])) for name in sizes}
    while sum(counts.values()) != kept:
        up = sum(counts.values()) < kept
        movable = [name for name in sizes if (counts[name] < sizes[name] if up else counts[name] > 1)]
        furthest = max(movable, key=lambda name: (exact[name] - counts[name]) * (1 if up else -1))
        counts[furthest] += 1 if up else -1
    return {name: counts[name] for name in shapes}


def random_masks(
    shapes: Mapping[str, Sequence[int]], counts: Mapping[str, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Masks of `counts` random positions of each layer, by name, on the CPU; True = kept."""
    masks = {}
    for name, shape in shapes.items():
        mask = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
        mask[torch.randperm(mask.numel(), generator=generator)[: counts[name]]] = True
        masks[name] = mask.reshape(tuple(shape))
    return masks


def drop_and_regrow(weight: Tensor, mask: Tensor, priority: Tensor, *, drop: int, grow: int) -> tuple[Tensor, Tensor]:
    """Drop the smallest kept weights of a layer, then grow where `priority` is largest among all that are not kept.

    What was just dropped may grow again, from 0, as published for FlyingBird and RigL.

    Args:
        weight: Of the layer.
        mask: Of the same shape, True = kept.
        priority: Of the same shape: random numbers, or sizes of a gradient.
        drop: Number to drop; at least one weight stays.
        grow: Number to grow; fewer where the layer becomes dense.

    Returns:
        (the new mask, the positions that have survived in it).
    """
    kept = int(mask.sum())
    sizes = weight.detach().abs().masked_fill(~mask, torch.inf).flatten()
    survivors = mask.flatten().clone()
    survivors[sizes.topk(min(drop, max(kept - 1, 0)), largest=False, sorted=False).indices] = False
    free = survivors.numel() - int(survivors.sum())
    candidates = priority.flatten().masked_fill(survivors, -torch.inf)
    grown = survivors.clone()
    grown[candidates.topk(min(grow, free), sorted=False).indices] = True
    return grown.reshape(mask.shape), survivors.reshape(mask.shape)
