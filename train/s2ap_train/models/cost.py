"""What a network costs: floating point operations and parameters, whole and by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from s2ap_train.models.channel_groups import ChannelGroup
from s2ap_train.models.modes import evaluation_mode

Share = TypeVar("Share", float, Tensor)


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer, all its channels kept.

    Attributes:
        weight: Name of its weight.
        flops: For one image; a multiply-add counts 2.
        parameters: Numbers in its weight, which is what pruning removes; its bias is not counted.
        outputs: The group of its output channels; None for the logits and for outputs of several groups.
        inputs: The group of its input channels; None for the image and for inputs of several groups.
        output_shares: By group, its fraction of the output channels; what is missing to 1 cannot be removed.
        input_shares: The same of the input channels.
    """

    weight: str
    flops: int
    parameters: int
    outputs: str | None
    inputs: str | None
    output_shares: Mapping[str, float] = field(hash=False)
    input_shares: Mapping[str, float] = field(hash=False)

    def share(self, kept: Mapping[str, Share]) -> Share | float:
        """The fraction of the layer's weights, and FLOPs, that is left where these fractions of the groups are kept.

        It is the product of kept outputs and inputs, differentiable where `kept` holds tensors. Groups that are not
        named are whole. A layer whose inputs and outputs are the same channels (depthwise) shrinks with them once.
        """
        left: Share | float = 1.0
        for shares in (self.output_shares, self.input_shares):
            named = [(group, share) for group, share in shares.items() if group in kept]
            left = left * (1 - sum(share for _, share in named) + sum(share * kept[group] for group, share in named))
        return left

    def remaining(self, kept: Mapping[str, Share]) -> Share | float:
        """FLOPs where these fractions of the groups are kept."""
        return self.flops * self.share(kept)


def flops(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Floating point operations for one image, a multiply-add counted as 2, as torch counts them.

    Convolutions and matrix products only: normalisation, activations and sums are not counted. Zeros in weights are
    counted like other numbers.

    Args:
        model: Images -> logits.
        image_shape: (C, H, W).
    """
    return int(_count(model, image_shape).get_total_flops())


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers, biases and normalisation included."""
    return sum(parameter.numel() for parameter in model.parameters())


def layer_costs(
    model: nn.Module, image_shape: tuple[int, int, int], groups: Sequence[ChannelGroup]
) -> tuple[LayerCost, ...]:
    """The cost of every convolution and linear layer, in the order of the parameters.

    Args:
        model: Images -> logits.
        image_shape: (C, H, W).
        groups: Its channel groups.
    """
    counts = _count(model, image_shape).get_flop_counts()
    costs = []
    for name, module in model.named_modules():
        if not isinstance(module, (_ConvNd, nn.Linear)):
            continue
        weight = f"{name}.weight" if name else "weight"
        written, read = {}, {}
        for group in groups:
            if weight in group.producers:
                rows = group.rows.get(weight, tuple(range(group.size)))
                written[group.name] = sum(channel >= 0 for channel in rows) / len(rows)
            if weight in group.consumers:
                read[group.name] = group.consumers[weight] / module.weight.shape[1]
        cost = LayerCost(
            weight=weight,
            flops=sum(counts.get(".".join(filter(None, (type(model).__name__, name))), {}).values()),
            parameters=module.weight.numel(),
            outputs=_single(written),
            inputs=_single(read),
            output_shares=written,
            input_shares=read,
        )
        costs.append(cost)
    return tuple(costs)


def _count(model: nn.Module, image_shape: tuple[int, int, int]) -> FlopCounterMode:
    counter = FlopCounterMode(display=False)
    image = next(model.parameters()).new_full((1, *image_shape), 0.5)
    with torch.no_grad(), evaluation_mode(model), counter:
        model(image)
    return counter


def _single(shares: Mapping[str, float]) -> str | None:
    return next(iter(shares)) if len(shares) == 1 and sum(shares.values()) == 1 else None
