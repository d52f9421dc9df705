"""The worst weights or scores nearby: the inner maximisation of adversarial weight perturbation and of S2AP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["l2", "linf", "adaptive"]
_TINY = 1e-12


def relative_ascent(
    tensors: Sequence[Tensor], gradients: Sequence[Tensor], radius: float, norm: Norm = "l2"
) -> list[Tensor]:
    """One steepest ascent step per tensor t along its gradient g, to the edge of a ball that grows with the tensor.

    'l2': radius * ||t|| * g / (||g|| + 1e-12), Wu, Xia, Wang 2020, equation 9 (arXiv 2004.05884), for weights; the same
    step in score space is S2AP's. 'linf': radius * max|t| * sign g. 'adaptive': radius * sqrt(n) * t^2 g / || |t| g ||,
    Kwon et al. 2021 (arXiv 2102.11600), times sqrt(n) so that the radius is the root mean square of the n relative
    changes, as it is for 'l2' when all entries are alike. Relative, because networks
    with batch normalisation, and masks of the top k scores, do not change when a layer is rescaled.
    """
    return [_ascent(t, g, radius, norm) for t, g in zip(tensors, gradients, strict=True)]


def within(offset: Tensor, tensor: Tensor, radius: float, norm: Norm = "l2") -> Tensor:
    """The offset scaled back into the ball of `relative_ascent` around this tensor, if it lies outside."""
    if norm == "linf":
        longest = radius * tensor.abs().max()
        return offset.clamp(-longest, longest)
    if norm == "adaptive":
        length = (offset / tensor.abs().clamp_min(_TINY)).norm()
        longest = radius * tensor.numel() ** 0.5 * torch.ones_like(length)
    else:
        length, longest = offset.norm(), radius * tensor.norm()
    factor: Tensor = (longest / length.clamp_min(_TINY)).clamp_max(1)
    return offset * factor


def _ascent(tensor: Tensor, gradient: Tensor, radius: float, norm: Norm) -> Tensor:
    if norm == "linf":
        direction, length = gradient.sign(), tensor.abs().max()
    elif norm == "adaptive":
        relative = tensor.abs() * gradient
        direction, length = (
            tensor.abs() * relative / (relative.norm() + _TINY),
            tensor.new_tensor(tensor.numel()).sqrt(),
        )
    else:
        direction, length = gradient / (gradient.norm() + _TINY), tensor.norm()
    step: Tensor = radius * length * direction
    return step


def weight_perturbation(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    radius: float,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Perturbation of each weight along its gradient, of length `radius` relative to the weight, by name.

    Under masks (True = kept) both norms count surviving weights only, and pruned positions are not moved: dead
    weights must not inflate the radius.
    """
    masks = masks or {}
    perturbation = {}
    for name, weight in weights.items():
        weight_l, gradient = weight.detach(), gradients[name]
        if name in masks:
            weight_l, gradient = weight_l * masks[name], gradient * masks[name]
        (perturbation[name],) = relative_ascent([weight_l], [gradient], radius)
    return perturbation


@contextmanager
def perturbed(weights: Mapping[str, Tensor], perturbation: Mapping[str, Tensor]) -> Iterator[None]:
    """Within this context the weights are moved by the perturbation; afterwards they are as before, bit for bit."""
    saved = {name: weights[name].detach().clone() for name in perturbation}
    with torch.no_grad():
        for name, step in perturbation.items():
            weights[name].add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, copy in saved.items():
                weights[name].copy_(copy)
