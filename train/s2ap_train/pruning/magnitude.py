"""Pruning by the size of the weights, layer by layer or over the whole network: the baseline of every other method."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.pruning.masks import Masks, kept_count, largest_mask, largest_values
from s2ap_train.pruning.pruned_model import PrunedModel, pruned_copy
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.structures import StructureName, structure_of

Scope = Literal["layer", "global", "lamp"]
SCOPES: tuple[Scope, ...] = ("layer", "global", "lamp")
_ALREADY_PRUNED = -1.0  # below every size, so that even a surviving weight of 0 is kept before a pruned one returns


@dataclass(frozen=True)
class Magnitude:
    """Hyper-parameters of `magnitude_pruned`.

    Attributes:
        sparsity: Fraction to remove: of weights, or of each group's channels; 2:4 removes half.
        scope: How single weights are compared, as in `prune_magnitude`; channels are ranked within their group.
        minimum_kept: Weights or channels that every layer or group keeps.
        structure: What is pruned.
    """

    sparsity: float = 0.8
    scope: Scope = "layer"
    minimum_kept: int = 1
    structure: StructureName = "unstructured"
    method: Literal["magnitude"] = field(default="magnitude", kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what cannot be pruned.

        Raises:
            RecipeError: With the value and what it may be.
        """
        check_magnitude(self.sparsity, self.scope, self.minimum_kept)
        if self.structure == "2:4" and self.sparsity != 0.5:
            raise RecipeError(f"2:4 removes exactly half of the weights; sparsity is {self.sparsity}, set it to 0.5")
        if self.structure != "unstructured" and self.scope != "layer":
            raise RecipeError(
                f"scope {self.scope!r} compares single weights, the structure is {self.structure!r}; set scope to layer"
            )


def magnitude_pruned(model: nn.Module, image_shape: tuple[int, int, int], config: Magnitude) -> PrunedModel:
    """Keep the weights, or the channels of largest L1 norm; the network itself is not changed. To be fine-tuned.

    Args:
        model: The trained network.
        image_shape: (C, H, W).
        config: What to prune, and how much.

    Raises:
        RecipeError: As `prune_magnitude`, or if the network does not have the structure.
    """
    if config.structure == "unstructured":
        return prune_magnitude(model, sparsity=config.sparsity, scope=config.scope, minimum_kept=config.minimum_kept)
    structure = structure_of(config.structure, model, (image_shape[0], image_shape[1], image_shape[2]))
    scores = structure.initial_scores(model, "scaled_magnitude", torch.Generator())
    masks = {name: structure.cut(s, 1 - config.sparsity) for name, s in scores.items()}
    for name, mask in masks.items():
        least = min(config.minimum_kept, mask.numel())
        if int(mask.sum()) < least:
            masks[name] = largest_mask(scores[name], least)
    pruned = structure.apply(model, masks)
    return PrunedModel(pruned, masks, scores, (), best_epoch=0, searched=copy.deepcopy(model).eval())


def prune_magnitude(model: nn.Module, *, sparsity: float, scope: Scope = "layer", minimum_kept: int = 1) -> PrunedModel:
    """Keep the largest weights; the network itself is not changed. To be fine-tuned.

    Args:
        model: The trained network.
        sparsity: Fraction to remove, of each layer ("layer") or of all weights together.
        scope: "layer": the same share of every layer (HYDRA calls it LWM; a mask search starts from it). "global": the
            largest weights of the network, wherever they are. "lamp": the same of `lamp_scores`.
        minimum_kept: Weights that every layer keeps whatever their size; pure global pruning (0) may empty a layer.

    Raises:
        RecipeError: If the sparsity is not in [0, 1), the scope is unknown, a weight is not finite, or the minima of
            all layers are more than may be kept.
    """
    weights = {name: w.detach().clone() for name, w in prunable_weights(model).items()}
    masks = magnitude_masks(weights, sparsity=sparsity, scope=scope, minimum_kept=minimum_kept)
    scores = {name: lamp_scores(w) for name, w in weights.items()} if scope == "lamp" else weights
    return PrunedModel(pruned_copy(model, masks), masks, scores, (), best_epoch=0, searched=copy.deepcopy(model).eval())


def magnitude_masks(
    weights: Mapping[str, Tensor],
    *,
    sparsity: float,
    scope: Scope = "layer",
    minimum_kept: int = 1,
    within: Masks | None = None,
) -> dict[str, Tensor]:
    """Masks of the largest weights by layer name, exactly `kept_count` per layer or in all; True = kept.

    Args:
        weights: By layer name, any shape.
        sparsity: Of each layer, or of all of them together, pruned weights counted.
        scope: As in `prune_magnitude`.
        minimum_kept: Weights that every layer keeps at least (all of them, where it has fewer).
        within: Masks that the new ones may only shrink: what is pruned stays pruned.

    Raises:
        RecipeError: As `prune_magnitude`.
    """
    check_magnitude(sparsity, scope, minimum_kept)
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise RecipeError(f"{name} holds values that are not finite and cannot be ranked; train the network again")
    sizes = {name: lamp_scores(w) if scope == "lamp" else w.detach().abs() for name, w in weights.items()}
    if within is not None:
        sizes = {name: s.masked_fill(~within[name], _ALREADY_PRUNED) for name, s in sizes.items()}
    if scope != "layer":
        return global_masks(sizes, kept_count(sum(s.numel() for s in sizes.values()), 1 - sparsity), minimum_kept)
    counts = {name: max(minimum_kept, kept_count(s.numel(), 1 - sparsity)) for name, s in sizes.items()}
    return {name: largest_values(s, min(counts[name], s.numel())) for name, s in sizes.items()}


def check_magnitude(sparsity: float, scope: Scope, minimum_kept: int) -> None:
    """Refuse values that mean nothing.

    Raises:
        RecipeError: With the value and what it may be.
    """
    if not 0 <= sparsity < 1:
        raise RecipeError(f"sparsity is {sparsity}; it is the fraction of weights removed, at least 0 and below 1")
    if scope not in SCOPES or minimum_kept < 0:
        raise RecipeError(
            f"scope is {scope!r} and minimum_kept {minimum_kept}; choose one of {', '.join(SCOPES)}, and at least 0"
        )


def global_masks(scores: Mapping[str, Tensor], kept: int, minimum_kept: int = 1) -> dict[str, Tensor]:
    """Masks of the `kept` largest scores over all layers, after each layer's `minimum_kept` largest were taken.

    By index and not by a threshold, so equal scores do not change the count. Scores are compared as they are, signed.

    Raises:
        RecipeError: If the minima of all layers are more than `kept`.
    """
    masks = {name: largest_values(s, min(minimum_kept, s.numel())) for name, s in scores.items()}
    free = kept - sum(int(m.sum()) for m in masks.values())
    if free < 0:
        raise RecipeError(
            f"{len(scores)} layers that keep at least {minimum_kept} weights each need more than the {kept} that this "
            "sparsity keeps in all; lower minimum_kept or the sparsity"
        )
    remaining = [s.masked_fill(masks[name], -torch.inf).flatten() for name, s in scores.items()]
    chosen = torch.split(largest_values(torch.cat(remaining), free), [s.numel() for s in scores.values()])
    return {name: mask | more.reshape(mask.shape) for (name, mask), more in zip(masks.items(), chosen, strict=True)}


def lamp_scores(weight: Tensor) -> Tensor:
    """Layer-adaptive magnitude of one layer: w^2 / sum of w'^2 over its weights that are at least as large; float64.

    Lee et al. 2021 (arXiv 2010.07611), equation 2; equal weights rank by their position. The largest weight of every
    layer has score 1, so a global top k of as many weights as there are layers empties none of them. A layer of zeros
    has scores of zero.
    """
    squares, order = weight.detach().double().square().flatten().sort(stable=True)
    at_least_as_large = squares.flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(squares)
    scores[order] = squares / at_least_as_large.clamp_min(torch.finfo(squares.dtype).tiny)
    return scores.reshape(weight.shape)
