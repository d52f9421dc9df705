"""Coupled channels: which layers of a network share them, and taking some out of all of them at once.

Layers are coupled where their outputs are added, concatenated, normalised or read (Fang et al. 2023, arXiv 2301.12900,
by the library torch-pruning): a channel of a residual stream is one channel of every block that writes or reads it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from s2ap_defend.errors import RecipeError
from s2ap_train.models.channel_graph import INSTEAD, ChannelGraph, ChannelGroup
from s2ap_train.models.classifier import Classifier

Kept = Mapping[str, Tensor]
"""By group name: which of its channels stay, bool [size]."""

__all__ = [
    "ChannelGroup",
    "Kept",
    "channel_groups",
    "channel_sums",
    "gate_channels",
    "gate_factors",
    "remove_channels",
]

AnyModule = TypeVar("AnyModule", bound=nn.Module)

TOLERANCE = 1e-9  # of the logits, in float64


@torch.inference_mode(False)  # what runs in inference mode leaves nothing to trace, and makes tensors of no use later
def channel_groups(
    model: nn.Module, image_shape: tuple[int, int, int], *, verify: bool = True
) -> tuple[ChannelGroup, ...]:
    """The channel groups of a network, in the order of its parameters; the classes it answers are not among them.

    Args:
        model: Images [N, C, H, W] -> logits [N, K]; it is not changed.
        image_shape: (C, H, W).
        verify: Compare removal with gating on random numbers, in float64; a second for a large network.

    Raises:
        RecipeError: If the network couples channels in a way that cannot be gated or removed; the layer is named.
    """
    groups = tuple(ChannelGraph(model, image_shape).groups())
    if verify:
        _verify(model, groups, image_shape)
    return groups


def gate_channels(model: AnyModule, groups: Sequence[ChannelGroup], kept: Kept) -> AnyModule:
    """A copy of full size, in evaluation mode, whose other channels are exactly 0 after batch normalisation.

    A convolution's zero output would still give beta - gamma * mean / std after it: gating before is not removal.

    Raises:
        RecipeError: If `kept` does not fit the groups.
    """
    _check(groups, kept)
    gated = copy.deepcopy(model).eval()
    parameters = dict(gated.named_parameters())
    with torch.no_grad():
        for name, factor in gate_factors(groups, kept, parameters).items():
            parameters[name].mul_(factor)
    return gated


def gate_factors(
    groups: Sequence[ChannelGroup], gates: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What each gated parameter is multiplied by, differentiable in the gates.

    Args:
        groups: The network's groups.
        gates: By group name: [size], bool or floating point; groups that are not named stay as they are.
        parameters: The network's parameters by name, for their sizes and types.

    Returns:
        By parameter name: a factor of the parameter's number of dimensions that broadcasts over all but the first.
    """
    factors: dict[str, Tensor] = {}
    for group in groups:
        for name in group.gates if group.name in gates else ():
            parameter = parameters[name]
            factor = gates[group.name].to(parameter.device)
            factor = factor.to(parameter.dtype) if not factor.is_floating_point() else factor
            if name in group.rows:
                channels = torch.tensor(group.rows[name], device=parameter.device)
                factor = torch.where(channels >= 0, factor[channels.clamp_min(0)], 1.0)
            factor = factor.reshape(-1, *[1] * (parameter.dim() - 1))
            factors[name] = factors[name] * factor if name in factors else factor
    return factors


def channel_sums(groups: Sequence[ChannelGroup], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum of something over each channel's weights, in all layers that produce it, by group name: [size].

    Args:
        groups: The network's groups.
        values: By weight name, of the weight's shape: with |w|, the L1 norm of channels.
    """
    sums = {}
    for group in groups:
        first = values[group.producers[0]]
        sums[group.name] = first.new_zeros(group.size)
        for name in group.producers:
            totals = values[name].flatten(1).sum(dim=1)  # [rows]
            channels = torch.tensor(group.rows.get(name, range(group.size)), device=totals.device)
            sums[group.name] = sums[group.name].index_add(0, channels[channels >= 0], totals[channels >= 0])
    return sums


@torch.inference_mode(False)
def remove_channels(
    model: AnyModule, groups: Sequence[ChannelGroup], kept: Kept, image_shape: tuple[int, int, int]
) -> AnyModule:
    """A smaller copy of the same class, in evaluation mode, without the other channels.

    Producers lose rows, readers columns, normalisations scale, shift and running statistics. Its logits equal those of
    `gate_channels` up to rounding, and a `Classifier` describes itself with what it kept.

    Args:
        model: The network; it is not changed.
        groups: By `channel_groups` of this network.
        kept: By group name; groups that are not named keep everything.
        image_shape: (C, H, W).

    Raises:
        RecipeError: If `kept` does not fit the groups, or would leave one without a channel.
    """
    _check(groups, kept)
    graph = ChannelGraph(model, image_shape)
    for group in groups:
        if group.name in kept:
            graph.remove(group, (~kept[group.name].cpu()).nonzero().flatten().tolist())
    smaller: AnyModule = graph.model
    channels_last = any(_is_channels_last(old) for old in model.parameters())
    for (name, parameter), old in zip(smaller.named_parameters(), model.parameters(), strict=True):
        if min(parameter.shape, default=1) == 0:
            raise RecipeError(f"nothing would be left of {name}; keep more channels of its group")
        parameter.requires_grad_(old.requires_grad)
        parameter.data = parameter.new_empty(parameter.shape).copy_(parameter.detach())  # the strides of a new network
    if channels_last:
        smaller.to(memory_format=torch.channels_last)
    if isinstance(smaller, Classifier):
        left = {group.name: int(kept[group.name].sum()) if group.name in kept else group.size for group in groups}
        smaller.channels = left
    return smaller


def _is_channels_last(parameter: Tensor) -> bool:
    return (
        parameter.dim() == 4
        and parameter.is_contiguous(memory_format=torch.channels_last)
        and not parameter.is_contiguous()
    )


def _check(groups: Sequence[ChannelGroup], kept: Kept) -> None:
    sizes = {group.name: group.size for group in groups}
    unknown = sorted(kept.keys() - sizes.keys())
    if unknown:
        raise RecipeError(f"channels are given for {unknown}; the groups are {', '.join(sizes)}")
    for name, stays in kept.items():
        if stays.dtype != torch.bool or tuple(stays.shape) != (sizes[name],) or not stays.any():
            raise RecipeError(
                f"group {name} got a {stays.dtype} mask of shape {tuple(stays.shape)} with {int(stays.sum())} channels "
                f"kept; expected torch.bool of shape {(sizes[name],)} that keeps at least one"
            )


def _verify(model: nn.Module, groups: Sequence[ChannelGroup], image_shape: tuple[int, int, int]) -> None:
    """Compare gating with removal, in float64, at random statistics, scales and shifts; refuse what differs."""
    generator = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(model).cpu().double().eval()
    for module in trial.modules():
        if isinstance(module, _NormBase):
            for tensor, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.bias, -0.5)):
                if tensor is not None:
                    tensor.data.uniform_(low, low + 1, generator=generator)
            if module.running_mean is not None:
                module.running_mean.uniform_(-0.5, 0.5, generator=generator)
    images = torch.rand(2, *image_shape, generator=generator, dtype=torch.float64)
    kept = {}
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        kept[group.name] = torch.zeros(group.size, dtype=torch.bool).index_fill(0, order[: (group.size + 1) // 2], True)
    try:
        _compare(trial, groups, kept, image_shape, images)
    except RecipeError:
        for group in groups:  # to name the first that fails
            _compare(trial, groups, {group.name: kept[group.name]}, image_shape, images)
        raise


def _compare(
    trial: nn.Module,
    groups: Sequence[ChannelGroup],
    kept: Kept,
    image_shape: tuple[int, int, int],
    images: Tensor,
) -> None:
    """Refuse a network whose logits differ when channels are gated and when they are removed."""
    where = f"group {next(iter(kept))}" if len(kept) == 1 else f"the groups {', '.join(kept)}"
    smaller = remove_channels(trial, groups, kept, image_shape)
    with torch.no_grad():
        gated = gate_channels(trial, groups, kept)(images)
        try:
            removed = smaller(images)
        except RuntimeError as error:  # sizes that are written into a forward method
            raise RecipeError(
                f"the network does not work with fewer channels in {where}: {error}; take sizes from the tensors in "
                f"its forward method, or {INSTEAD}"
            ) from error
    difference = float((gated - removed).abs().max() / gated.abs().max().clamp_min(1))
    if not difference < TOLERANCE:
        raise RecipeError(
            f"channels cannot be pruned here: removing some of {where} changes the logits by {difference:.2g} of their "
            "size against gating them; operations between layers must keep channels apart and 0 at 0 (as ReLU, pooling "
            f"and sums do); {INSTEAD}"
        )
