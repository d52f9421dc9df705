"""Which channels a structurally pruned member keeps: random ones, or those of the largest filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from s2ap_train.models import Classifier
from s2ap_train.models.channel_groups import ChannelGroup, channel_sums

ChooseChannels = Callable[[Classifier, Sequence[ChannelGroup], Sequence[int], torch.Generator], Mapping[str, Tensor]]
"""A network, its groups, how many channels each keeps, randomness -> by group name, which: bool [size]."""


def random_channels(
    base: Classifier,  # noqa: ARG001
    groups: Sequence[ChannelGroup],
    counts: Sequence[int],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Random ones: 'RC' in Wang et al. 2021 (DOI 10.1109/ACCESS.2021.3133334)."""
    return {
        group.name: _only(group.size, torch.randperm(group.size, generator=generator)[:count])
        for group, count in zip(groups, counts, strict=True)
    }


def largest_channels(
    base: Classifier,
    groups: Sequence[ChannelGroup],
    counts: Sequence[int],
    generator: torch.Generator,  # noqa: ARG001
) -> dict[str, Tensor]:
    """Those of largest sum |w| in all layers that produce them: 'L1N' in Wang et al. 2021, after Li et al. 2017."""
    norms = channel_sums(groups, {name: weight.detach().abs() for name, weight in base.named_parameters()})
    return {
        group.name: _only(group.size, norms[group.name].topk(count).indices)
        for group, count in zip(groups, counts, strict=True)
    }


def _only(size: int, channels: Tensor) -> Tensor:
    """Bool [size], True at these indices."""
    return torch.zeros(size, dtype=torch.bool, device=channels.device).index_fill(0, channels, True)
