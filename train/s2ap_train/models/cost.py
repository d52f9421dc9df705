"""What a network costs: floating point operations and parameters, whole and by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from s2ap_defend.bench.work import count_work
from s2ap_defend.model_file import all_tensors
from s2ap_train.models.channel_groups import ChannelGroup
from s2ap_train.models.modes import attention_in_steps, evaluation_mode
from s2ap_train.models.onnx_network import OnnxNetwork
from s2ap_train.models.weights import prunable_weights

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

Share = TypeVar("Share", float, Tensor)


@dataclass(frozen=True)
class LayerCost:
    """One layer, all its channels kept.

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
    counted like other numbers. Of an ONNX file that torch does not compute they are counted as `graph_flops` does.

    Args:
        model: Images -> logits.
        image_shape: (C, H, W).
    """
    if isinstance(model, OnnxNetwork) and model.without_gradients:
        return graph_flops(model.proto)
    return int(_count(model, image_shape).get_total_flops())


def graph_flops(stage: ModelProto) -> int:
    """Floating point operations for one image of an ONNX graph with one input.

    Where sizes in it are not known before it runs, as in a loop, each number that it holds counts as one multiply-add.
    """
    work = count_work(stage)
    return max(1, 2 * _numbers(stage) if work is None else work.flops)


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers, biases and normalisation included; of an ONNX file that torch does not compute, all it has."""
    if isinstance(model, OnnxNetwork) and model.without_gradients:
        return _numbers(model.proto)
    return sum(parameter.numel() for parameter in model.parameters())


def layer_costs(
    model: nn.Module, image_shape: tuple[int, int, int], groups: Sequence[ChannelGroup]
) -> tuple[LayerCost, ...]:
    """The cost of every layer whose weight can be pruned, in the order of the modules.

    Args:
        model: Images -> logits.
        image_shape: (C, H, W).
        groups: Its channel groups.
    """
    counts = _count(model, image_shape).get_flop_counts()
    layer_flops = _flops_by_weight(model, {name: sum(count.values()) for name, count in counts.items()})
    costs = []
    for weight, parameter in prunable_weights(model).items():
        written = {group.name: place.share for group in groups if (place := group.producers.get(weight)) is not None}
        read = {group.name: place.share for group in groups if (place := group.consumers.get(weight)) is not None}
        cost = LayerCost(
            weight=weight,
            flops=layer_flops[weight],
            parameters=parameter.numel(),
            outputs=_single(written),
            inputs=_single(read),
            output_shares=written,
            input_shares=read,
        )
        costs.append(cost)
    return tuple(costs)


def _numbers(stage: ModelProto) -> int:
    return sum(math.prod(tensor.dims) for tensor in all_tensors(stage.graph))


def _flops_by_weight(model: nn.Module, counts: Mapping[str, int]) -> dict[str, int]:
    """FLOPs of the layers by weight; layers that share one add up, and an attention's projections share all of its."""
    weights = prunable_weights(model)
    names = {id(parameter): name for name, parameter in weights.items()}
    found = dict.fromkeys(weights, 0)
    for path, module in model.named_modules():
        spent = counts.get(".".join(filter(None, (type(model).__name__, path))), 0)
        parts = {name: p for name, p in prunable_weights(module).items() if id(p) in names}
        if isinstance(module, nn.MultiheadAttention):
            total = sum(parameter.numel() for parameter in parts.values())
            for parameter in parts.values():
                found[names[id(parameter)]] += spent * parameter.numel() // total
        elif isinstance(module, (_ConvNd, nn.Linear)) and "weight" in parts:
            found[names[id(parts["weight"])]] += spent
    return found


def _count(model: nn.Module, image_shape: tuple[int, int, int]) -> FlopCounterMode:
    from torch.utils.flop_counter import FlopCounterMode  # imports a compiler for GPUs

    counter = FlopCounterMode(display=False)
    image = next(model.parameters()).new_full((1, *image_shape), 0.5)
    with torch.no_grad(), evaluation_mode(model), attention_in_steps(), counter:
        model(image)
    return counter


def _single(shares: Mapping[str, float]) -> str | None:
    return next(iter(shares)) if len(shares) == 1 and sum(shares.values()) == 1 else None
