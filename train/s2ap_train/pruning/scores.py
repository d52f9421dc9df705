"""Importance scores: how they start, and how a loss reaches them through a mask that is piecewise constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def prunable_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the convolutions and linear layers, first and last included, by parameter name."""
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def scaled_magnitude(weight: Tensor) -> Tensor:
    """Initial scores of one layer: sqrt(6 / fan_in) * w / max|w|, signed (HYDRA). Their top k is the magnitude mask.

    A layer of zeros gets scores of zero.
    """
    fan_in = weight[0].numel()
    scaled: Tensor = (6 / fan_in) ** 0.5 * weight / weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    return scaled.detach().clone()


class _StraightThrough(torch.autograd.Function):
    """Forward: the mask. Backward: the gradient of the mask goes to the scores' sizes unchanged."""

    @staticmethod
    def forward(ctx: Any, size: Tensor, mask: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        return mask.to(size.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401, ARG004
        return gradients[0], None


def straight_through(scores: Tensor, mask: Tensor) -> Tensor:
    """The mask as a number, differentiable in the scores: d mask / d|s| is taken as 1 at every position, kept or not.

    Bengio et al. 2013 (arXiv 1308.3432). Pruned positions receive a gradient too, which is what lets them return.
    """
    passed: Tensor = _StraightThrough.apply(scores.abs(), mask)
    return passed


def masked_weights(
    weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights times mask by name, differentiable in the scores: dL/ds = dL/d(w m) * w * sign(s)."""
    return {name: weights[name].detach() * straight_through(s, masks[name]) for name, s in scores.items()}
