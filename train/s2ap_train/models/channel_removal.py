"""Channels physically taken out of a network: its tensors shrink, and its layers know their new sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from s2ap_defend.errors import RecipeError
from s2ap_train.models.attention import fewer_heads
from s2ap_train.models.channel_graph import ChannelGroup
from s2ap_train.models.channel_rules import groupwise


def shrink(model: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Tensor]) -> None:
    """Take the channels that are not kept out of a network, in place; frozen parameters stay frozen.

    Args:
        model: The network.
        groups: Its groups.
        kept: By group name: bool [size], on the CPU; other groups are whole.

    Raises:
        RecipeError: If nothing would be left of a tensor.
    """
    staying: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        for place in group.places if group.name in kept else ():
            rows = torch.tensor(place.rows)
            stays = (rows < 0) | kept[group.name][rows.clamp_min(0)]
            staying[place.name, place.dim] = staying.get((place.name, place.dim), stays) & stays
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    smaller: dict[int, Tensor] = {}
    for (name, dim), stays in staying.items():
        old = tensors[name]
        present = smaller.get(id(old), old)
        if not bool(stays.any()):
            raise RecipeError(f"nothing would be left of {name}; keep more channels of its group")
        smaller[id(old)] = present.detach().index_select(dim, stays.nonzero().flatten().to(present.device))
    for module in model.modules():
        before = {name: tensor.shape for name, tensor in module.named_parameters(recurse=False)}
        packed = getattr(module, "in_proj_weight", getattr(getattr(module, "qkv", None), "weight", None))
        if isinstance(packed, Tensor) and id(packed) in smaller:
            fewer_heads(module, smaller[id(packed)].shape[0] / packed.shape[0])
        holders: tuple[Any, ...] = (module._parameters, module._buffers)
        for holder in holders:
            for name, tensor in holder.items():
                if tensor is not None and id(tensor) in smaller:
                    holder[name] = _like(tensor, smaller, id(tensor))
        _resize(module, before)


def _like(old: Tensor, smaller: dict[int, Tensor], key: int) -> Tensor:
    """The smaller tensor, a parameter where the old one is; one object for all modules that share it."""
    if isinstance(old, nn.Parameter) and not isinstance(smaller[key], nn.Parameter):
        smaller[key] = nn.Parameter(smaller[key], requires_grad=old.requires_grad)
    return smaller[key]


def _resize(module: nn.Module, before: Mapping[str, torch.Size]) -> None:
    """Write the sizes of a layer's tensors into its attributes."""
    if isinstance(module, _ConvNd):
        weight, old = module.weight.shape, before.get("weight", module.weight.shape)
        transposed = isinstance(module, _ConvTransposeNd)
        if module.groups > 1 and groupwise(module.groups, module.in_channels // module.groups):
            module.groups = module.groups * weight[0] // old[0]
        inner = weight[1] * module.groups
        module.out_channels, module.in_channels = (inner, weight[0]) if transposed else (weight[0], inner)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        tensor = module.weight if module.affine else module.running_mean
        module.num_features = module.num_features if tensor is None else len(tensor)
    elif isinstance(module, nn.GroupNorm) and module.affine:
        module.num_groups = module.num_groups * len(module.weight) // module.num_channels
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
