"""Importance scores: how they start, and how a loss reaches them through a mask that is piecewise constant."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from s2ap_train.models.weights import prunable_weights

__all__ = ["ScoreStart", "prunable_weights", "scaled_magnitude", "start_scores", "straight_through", "weight_counts"]

ScoreStart = Literal["scaled_magnitude", "kaiming_uniform", "kaiming_normal", "xavier_normal", "snip"]


def weight_counts(model: nn.Module) -> tuple[int, int]:
    """(How many prunable weights are not 0, how many there are)."""
    weights = prunable_weights(model).values()
    return sum(int(torch.count_nonzero(w)) for w in weights), sum(w.numel() for w in weights)


def start_scores(weight: Tensor, start: ScoreStart, generator: torch.Generator) -> Tensor:
    """Initial scores of one layer, of the weight's shape, detached.

    'scaled_magnitude' is HYDRA's and HARP's; the random ones are drawn from the generator as for weights
    ('kaiming_uniform' with a = sqrt(5): Robust Scratch Tickets). 'snip' is measured by the mask search on one batch;
    until then the scores are as for 'scaled_magnitude'.
    """
    if start in {"scaled_magnitude", "snip"}:
        return scaled_magnitude(weight)
    scores = torch.empty(weight.shape, dtype=weight.dtype)
    if start == "kaiming_uniform":
        nn.init.kaiming_uniform_(scores, a=5**0.5, generator=generator)
    elif start == "kaiming_normal":
        nn.init.kaiming_normal_(scores, generator=generator)
    else:
        nn.init.xavier_normal_(scores, generator=generator)
    return scores.to(weight.device)


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
