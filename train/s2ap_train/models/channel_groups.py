"""Coupled channels: which layers of a network share them, and taking some out of all of them at once.

Layers are coupled where their outputs are added, concatenated, normalised or read (as in Fang et al. 2023, arXiv
2301.12900): a channel of a residual stream is one channel of every block that writes or reads it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from s2ap_defend.errors import RecipeError, first_line
from s2ap_train.models.channel_graph import INSTEAD, ChannelGroup, ChannelReport, find_channels
from s2ap_train.models.channel_removal import shrink
from s2ap_train.models.classifier import Classifier

Kept = Mapping[str, Tensor]
"""By group name: which of its channels stay, bool [size]."""

__all__ = [
    "ChannelGroup",
    "ChannelReport",
    "Kept",
    "channel_groups",
    "channel_report",
    "channel_sums",
    "gate_channels",
    "gate_factors",
    "removable",
    "remove_channels",
]

AnyModule = TypeVar("AnyModule", bound=nn.Module)

TOLERANCE = 1e-9  # of the logits, in float64


def channel_groups(
    model: nn.Module, image_shape: tuple[int, int, int], *, verify: bool = True
) -> tuple[ChannelGroup, ...]:
    """The channel groups of a network, in the order of its parameters; the classes it answers are not among them.

    Args:
        model: Images [N, C, H, W] -> logits [N, K]; it is not changed.
        image_shape: (C, H, W).
        verify: As in `channel_report`.

    Raises:
        RecipeError: As `channel_report`, or if no channel can be removed: the layers are named.
    """
    return removable(channel_report(model, image_shape, verify=verify), model)


def removable(report: ChannelReport, model: nn.Module) -> tuple[ChannelGroup, ...]:
    """The groups of a network's report.

    Raises:
        RecipeError: If there are none; layers are named, and what to use instead.
    """
    if report.groups:
        return report.groups
    why = "; ".join(f"{name} stays whole: {reason}" for name, reason in list(report.whole.items())[:3])
    more = f"; and {len(report.whole) - 3} more" if len(report.whole) > 3 else ""
    why = why or "it has no hidden layers"
    raise RecipeError(f"{type(model).__name__} has no channels that can be pruned ({why}{more}); {INSTEAD}")


@torch.inference_mode(False)  # what runs in inference mode makes tensors of no use later
def channel_report(model: nn.Module, image_shape: tuple[int, int, int], *, verify: bool = True) -> ChannelReport:
    """The channel groups of a network, and why other layers stay whole.

    Args:
        model: Images [N, C, H, W] -> logits [N, K]; it is not changed.
        image_shape: (C, H, W).
        verify: Compare removal with gating on random numbers, in float64, and leave groups whole where they differ; a
            second for a large network.

    Raises:
        RecipeError: If the network fails.
    """
    report = find_channels(model, image_shape)
    if not verify or not report.groups:
        return report
    wrong = _differing(model, report.groups, image_shape)
    whole = {weight: wrong[group.name] for group in report.groups if group.name in wrong for weight in group.producers}
    left = tuple(group for group in report.groups if group.name not in wrong)
    return ChannelReport(left, {**report.whole, **whole})


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
        for name, place in group.gated.items() if group.name in gates else ():
            parameter = parameters[name]
            factor = gates[group.name].to(parameter.device)
            factor = factor.to(parameter.dtype) if not factor.is_floating_point() else factor
            if place.rows != tuple(range(group.size)):
                channels = torch.tensor(place.rows, device=parameter.device)
                factor = torch.where(channels >= 0, factor[channels.clamp_min(0)], 1.0)
            factor = factor.reshape([-1 if dim == place.dim else 1 for dim in range(parameter.dim())])
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
        total = None
        for name, place in group.producers.items():
            if name not in values:
                continue  # the weight of no layer
            by_row = values[name].movedim(place.dim, 0).flatten(1).sum(dim=1)
            channels = torch.tensor(place.rows, device=by_row.device)
            ours = channels >= 0
            total = by_row.new_zeros(group.size) if total is None else total
            total = total.index_add(0, channels[ours], by_row[ours])
        if total is not None:
            sums[group.name] = total
    return sums


@torch.inference_mode(False)
def remove_channels(model: AnyModule, groups: Sequence[ChannelGroup], kept: Kept) -> AnyModule:
    """A smaller copy of the same class, in evaluation mode, without the other channels.

    Producers lose rows, readers columns, normalisations scale, shift and running statistics. Its logits equal those of
    `gate_channels` up to rounding, and a `Classifier` describes itself with what it kept.

    Args:
        model: The network; it is not changed.
        groups: By `channel_groups` of this network.
        kept: By group name; groups that are not named keep everything.

    Raises:
        RecipeError: If `kept` does not fit the groups, or would leave one without a channel.
    """
    _check(groups, kept)
    smaller = copy.deepcopy(model).eval()
    shrink(smaller, groups, {name: stays.cpu() for name, stays in kept.items()})
    channels_last = any(_is_channels_last(old) for old in model.parameters())
    for parameter in smaller.parameters():
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


def _differing(model: nn.Module, groups: Sequence[ChannelGroup], image_shape: tuple[int, int, int]) -> dict[str, str]:
    """Groups whose removal is not their gating, in float64, at random statistics, scales and shifts: by name, why."""
    generator = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(model).cpu().double().eval()
    for module in trial.modules():
        if isinstance(module, (_NormBase, nn.GroupNorm)):
            for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
                if (tensor := getattr(module, name, None)) is not None:
                    tensor.data.uniform_(low, low + 1, generator=generator)
    images = torch.rand(2, *image_shape, generator=generator, dtype=torch.float64)
    kept = {}
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        kept[group.name] = torch.zeros(group.size, dtype=torch.bool).index_fill(0, order[: (group.size + 1) // 2], True)
    wrong: dict[str, str] = {}
    if _difference(trial, groups, kept, images) is None:
        return wrong
    for group in groups:
        if (why := _difference(trial, groups, {group.name: kept[group.name]}, images)) is not None:
            wrong[group.name] = why
    right = {name: mask for name, mask in kept.items() if name not in wrong}
    if (why := _difference(trial, groups, right, images)) is not None:  # only together: none of them can be trusted
        wrong |= dict.fromkeys(right, why)
    return wrong


def _difference(trial: nn.Module, groups: Sequence[ChannelGroup], kept: Kept, images: Tensor) -> str | None:
    """How removing channels differs from gating them; None if it does not."""
    with torch.no_grad():
        gated = gate_channels(trial, groups, kept)(images)
        try:
            removed = remove_channels(trial, groups, kept)(images)
        except (RuntimeError, ValueError, TypeError, AssertionError, RecipeError) as error:
            # sizes that are written into a forward method
            return (
                f"the network does not work with fewer of its channels ({first_line(error)}); take sizes from "
                "the tensors in the forward method"
            )
    difference = float((gated - removed).abs().max() / gated.abs().max().clamp_min(1))
    if difference < TOLERANCE:
        return None
    return (
        f"removing some of its channels changes the logits by {difference:.2g} of their size against gating them; "
        "operations between layers must keep channels apart and 0 at 0 (as ReLU, pooling and sums do)"
    )
