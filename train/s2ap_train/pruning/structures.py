"""What a score stands for: one weight, one weight in a 2:4 pattern, or one channel of a coupled group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.channel_groups import (
    ChannelGroup,
    channel_groups,
    channel_sums,
    gate_channels,
    gate_factors,
)
from s2ap_train.models.cost import LayerCost, layer_costs
from s2ap_train.pruning.masks import Masks, largest_mask, top_k_mask
from s2ap_train.pruning.pruned_model import pruned_copy
from s2ap_train.pruning.scores import ScoreStart, prunable_weights, start_scores
from s2ap_train.pruning.two_four import two_four_mask, two_four_weights

StructureName = Literal["unstructured", "channel", "2:4"]
CostTarget = Literal["parameters", "flops"]

__all__ = ["Channels", "Cost", "CostTarget", "Structure", "StructureName", "TwoFour", "Unstructured", "structure_of"]


@dataclass(frozen=True)
class Cost:
    """What a network costs as a function of how much each layer or group keeps.

    Attributes:
        terms: One per layer: its dense cost, and the share of it that is left where these shares are kept.
    """

    terms: tuple[tuple[float, Callable[[Mapping[str, Tensor]], Tensor | float]], ...]

    def rate(self, kept: Mapping[str, Tensor]) -> Tensor:
        """Cost of the pruned network over that of the dense one, a scalar, differentiable in the kept shares."""
        total = sum(cost for cost, _ in self.terms)
        rate: Tensor = sum(cost / total * left(kept) for cost, left in self.terms) + torch.zeros(())
        return rate


class Structure(Protocol):
    """How scores are laid out over a network, cut into masks, and applied to it."""

    def initial_scores(self, model: nn.Module, start: ScoreStart, generator: torch.Generator) -> dict[str, Tensor]:
        """Scores by name, detached."""

    def cut(self, scores: Tensor, keep_ratio: float) -> Tensor:
        """The mask of one layer or group: True = kept, of the scores' shape."""

    def cut_like(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The mask that keeps exactly as many as another one."""

    def effective(self, parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters that the mask values change, by name, differentiable in the values."""

    def apply(self, model: nn.Module, masks: Masks) -> nn.Module:
        """A copy in evaluation mode in which everything that is pruned is exactly 0."""

    def cost(self, model: nn.Module, image_shape: tuple[int, int, int], target: CostTarget) -> Cost:
        """What the network costs by what is kept."""


class Unstructured:
    """One score a weight, of every convolution and linear layer, first and last included."""

    def initial_scores(self, model: nn.Module, start: ScoreStart, generator: torch.Generator) -> dict[str, Tensor]:
        """Scores of the weights' shapes."""
        return {name: start_scores(w.detach(), start, generator) for name, w in prunable_weights(model).items()}

    def cut(self, scores: Tensor, keep_ratio: float) -> Tensor:
        """The largest |scores|."""
        return top_k_mask(scores, keep_ratio)

    def cut_like(self, scores: Tensor, mask: Tensor) -> Tensor:
        """As many of the largest |scores|."""
        return largest_mask(scores, int(mask.sum()))

    def effective(self, parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights times mask: dL/ds = dL/d(w m) * w * sign(s)."""
        return {name: parameters[name] * value for name, value in values.items()}

    def apply(self, model: nn.Module, masks: Masks) -> nn.Module:
        """Pruned weights are 0."""
        return pruned_copy(model, masks)

    def cost(self, model: nn.Module, image_shape: tuple[int, int, int], target: CostTarget) -> Cost:
        """Each layer's own share of its parameters or FLOPs."""
        layers = layer_costs(model, image_shape, ())
        return Cost(tuple((_cost(layer, target), itemgetter(layer.weight)) for layer in layers))


class TwoFour(Unstructured):
    """Two weights kept of every four along the input channels: the pattern that sparse tensor cores multiply.

    Layers whose inputs are not a multiple of four stay dense.
    """

    def initial_scores(self, model: nn.Module, start: ScoreStart, generator: torch.Generator) -> dict[str, Tensor]:
        """Scores of the layers that can have the pattern.

        Raises:
            RecipeError: If no layer can.
        """
        return {name: start_scores(w.detach(), start, generator) for name, w in two_four_weights(model).items()}

    def cut(self, scores: Tensor, keep_ratio: float) -> Tensor:
        """The two largest |scores| of every four.

        Raises:
            RecipeError: Unless the keep ratio is one half.
        """
        if not math.isclose(keep_ratio, 0.5):
            raise RecipeError(f"2:4 keeps exactly half of the weights, asked for {keep_ratio:.4g}; set sparsity = 0.5")
        return two_four_mask(scores)

    def cut_like(self, scores: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002
        """Every 2:4 mask keeps half."""
        return two_four_mask(scores)


class Channels:
    """One score a channel, shared by every layer that is coupled through it; the gate lies after batch normalisation.

    Args:
        groups: The coupled channels of the network.
    """

    def __init__(self, groups: Sequence[ChannelGroup]) -> None:
        self.groups = tuple(groups)

    def initial_scores(self, model: nn.Module, start: ScoreStart, generator: torch.Generator) -> dict[str, Tensor]:
        """Scores [C] of each group, from the L1 norms of its filters where the start is by magnitude."""
        norms = channel_sums(self.groups, {name: w.detach().abs() for name, w in prunable_weights(model).items()})
        return {name: start_scores(norm[:, None], start, generator)[:, 0].clone() for name, norm in norms.items()}

    def cut(self, scores: Tensor, keep_ratio: float) -> Tensor:
        """The channels of largest |score|."""
        return top_k_mask(scores, keep_ratio)

    def cut_like(self, scores: Tensor, mask: Tensor) -> Tensor:
        """As many channels of largest |score|."""
        return largest_mask(scores, int(mask.sum()))

    def effective(self, parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gated parameters times the gate of their channel."""
        factors = gate_factors(self.groups, values, parameters)
        return {name: parameters[name] * factor for name, factor in factors.items()}

    def apply(self, model: nn.Module, masks: Masks) -> nn.Module:
        """Pruned channels are 0 after batch normalisation."""
        return gate_channels(model, self.groups, masks)

    def cost(self, model: nn.Module, image_shape: tuple[int, int, int], target: CostTarget) -> Cost:
        """Each layer's share: kept outputs times kept inputs."""
        layers = layer_costs(model, image_shape, self.groups)
        return Cost(tuple((_cost(layer, target), layer.share) for layer in layers))


def structure_of(name: StructureName, model: nn.Module, image_shape: tuple[int, int, int]) -> Structure:
    """The structure of that name over this network.

    Raises:
        RecipeError: If there is none of that name.
    """
    if name == "unstructured":
        return Unstructured()
    if name == "2:4":
        return TwoFour()
    if name == "channel":
        return Channels(channel_groups(model, image_shape))
    raise RecipeError(f"structure is {name!r}; choose from unstructured, channel, 2:4")


def _cost(layer: LayerCost, target: CostTarget) -> float:
    return float(layer.flops if target == "flops" else layer.parameters)
