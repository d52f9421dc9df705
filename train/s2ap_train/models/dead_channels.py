"""Channels that a masked network does not need: nobody reads them, or they are 0 for whoever does.

Unstructured masks leave whole filters and whole inputs at zero, the more the sparser they are. Such channels are taken
out of every layer that shares them, as channel pruning does, and again until none is left: what only a dead channel
read is unread itself. The network's answers stay, up to the order in which sums are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.channel_graph import ChannelGroup, Place, find_channels
from s2ap_train.models.channel_groups import remove_channels

__all__ = ["Lean", "without_dead_channels"]


@dataclass(frozen=True)
class Lean:
    """A network without its dead channels.

    Attributes:
        model: A copy; the network itself where it has none.
        removed: Channels that were taken out, counted once a group.
    """

    model: nn.Module
    removed: int


def without_dead_channels(model: nn.Module, image_shape: tuple[int, int, int]) -> Lean:
    """Take dead channels out of a network, which is not changed.

    Args:
        model: In evaluation mode, on the CPU, its masked weights 0.
        image_shape: (C, H, W).
    """
    if not _has_zeros(model):
        return Lean(model, 0)
    lean, removed = model, 0
    try:
        while True:
            groups = find_channels(lean, image_shape).groups
            left = {group.name: alive for group in groups if not bool((alive := _alive(lean, group)).all())}
            if not left:
                return Lean(lean, removed)
            lean = remove_channels(lean, groups, left)
            removed += sum(int((~alive).sum()) for alive in left.values())
    except RecipeError:  # its channels cannot be followed
        return Lean(model, 0)


def _has_zeros(model: nn.Module) -> bool:
    """Whether a weight has an output or an input of zeros alone."""
    weights = [weight for weight in model.parameters() if weight.dim() >= 2]
    return any(bool(_zero(weight, dim).any()) for weight in weights for dim in (0, 1))


def _alive(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Which channels of a group something reads and something writes, bool [size]; one stays whatever it is."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    unread = _all_zero([(tensors[place.name], place) for place in group.consumers.values()], group.size)
    silent = _all_zero([(tensors[place.name], place) for place in group.gated.values()], group.size)
    alive = ~(unread | silent)
    if not bool(alive.any()):
        alive[0] = True
    return alive


def _all_zero(held: list[tuple[Tensor, Place]], size: int) -> Tensor:
    """Channels whose entries are 0 in every one of these tensors, bool [size]; none where there is no tensor."""
    dead = torch.full((size,), bool(held))
    for tensor, place in held:
        rows = torch.tensor(place.rows)
        used = torch.zeros(size, dtype=torch.bool)
        used[rows[(rows >= 0) & ~_zero(tensor, place.dim)]] = True
        dead &= ~used
    return dead


def _zero(tensor: Tensor, dim: int) -> Tensor:
    """Along a dimension, where everything is 0."""
    return (tensor.detach() == 0).transpose(0, dim).flatten(1).all(dim=1) if tensor.dim() > 1 else tensor.detach() == 0
