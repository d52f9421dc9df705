"""The worst weights nearby: the inner maximisation of adversarial weight perturbation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_TINY = 1e-12


def relative_ascent(tensors: Sequence[Tensor], gradients: Sequence[Tensor], radius: float) -> list[Tensor]:
    """One normalised ascent step per tensor: radius * ||t|| * g / (||g|| + 1e-12), Euclidean norms.

    Wu, Xia, Wang 2020, equation 9 (arXiv 2004.05884), for weights; the same step in score space is S2AP's. Relative,
    because networks with batch normalisation, and masks of the top k scores, do not change when a layer is rescaled.
    """
    return [radius * t.norm() * g / (g.norm() + _TINY) for t, g in zip(tensors, gradients, strict=True)]


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
