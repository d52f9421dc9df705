"""How sharp a loss is around scores: by real changes of the mask, and by straight-through curvature."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from s2ap_train.attacks.weight_perturbation import relative_ascent
from s2ap_train.models.second_derivative import twice_differentiable

ScoreFunction = Callable[[Mapping[str, Tensor]], Tensor]
"""Scores by name -> loss, on fixed examples in evaluation mode; differentiable through the straight-through mask."""


def mask_sharpness(
    loss: ScoreFunction,
    scores: Mapping[str, Tensor],
    *,
    radius: float,
    generator: torch.Generator,
    ascent_steps: int = 10,
    directions: int = 20,
) -> float:
    """Largest rise of the loss found for perturbations ||z_l|| <= radius * ||s_l||, with the masks that really result.

    The maximum over projected ascent steps and over random directions of full length; never below 0, since z = 0 is
    allowed. It is a lower bound of the true maximum.
    """
    start = [s.detach() for s in scores.values()]

    def loss_at(point: list[Tensor]) -> Tensor:
        return loss(dict(zip(scores, point, strict=True)))

    base = float(loss_at(start).detach())
    largest = base
    offsets = [torch.zeros_like(s) for s in start]
    for _ in range(ascent_steps):
        point = [(s + z).requires_grad_() for s, z in zip(start, offsets, strict=True)]
        gradients = torch.autograd.grad(loss_at(point), point)
        steps = relative_ascent(start, gradients, 2 * radius / ascent_steps)
        offsets = [_projected(z + step, s, radius) for z, step, s in zip(offsets, steps, start, strict=True)]
        largest = max(largest, float(loss_at([s + z for s, z in zip(start, offsets, strict=True)]).detach()))
    for _ in range(directions):
        noise = [torch.randn(s.shape, generator=generator, dtype=s.dtype).to(s.device) for s in start]
        steps = relative_ascent(start, noise, radius)
        largest = max(largest, float(loss_at([s + z for s, z in zip(start, steps, strict=True)]).detach()))
    return largest - base


def largest_eigenvalue(
    loss: ScoreFunction,
    scores: Mapping[str, Tensor],
    *,
    generator: torch.Generator,
    iterations: int = 50,
    relative: bool = False,
) -> float:
    """Largest eigenvalue of the surrogate Hessian in score space, by power iteration.

    A mask is piecewise constant, so the true Hessian in the scores is 0 almost everywhere. Through the straight-through
    mask it is D H D with H the Hessian in the effective weights and D = diag(w * sign s): an indication, to be read
    next to `mask_sharpness`. The straight-through slope is 1 at every scale, so this stays when the scores are
    rescaled, as masks and sharpness do not.

    With `relative` it is the largest eigenvalue of diag(||s_l||) D H D diag(||s_l||): twice the rise that the surrogate
    predicts for a perturbation whose parts, each in units of its layer's ||s_l||, have total length 1. It grows with
    the square of the scores, although no mask changes: compare it only between scores of like norms.

    Args:
        loss: Scores by name -> loss, twice differentiable, see `twice_differentiable`.
        scores: Where.
        generator: Of the first vector.
        iterations: Products with the Hessian; twice as many if the eigenvalue of largest size is negative.
        relative: Measure each layer's scores in units of their norm.
    """
    point = {name: s.detach().clone().requires_grad_() for name, s in scores.items()}
    leaves = list(point.values())
    scale = [s.detach().norm() if relative else s.new_ones(()) for s in leaves]
    with twice_differentiable():
        gradients = torch.autograd.grad(loss(point), leaves, create_graph=True)

    def product(vector: list[Tensor]) -> list[Tensor]:
        scaled = [v * c for v, c in zip(vector, scale, strict=True)]
        products = torch.autograd.grad(gradients, leaves, grad_outputs=scaled, retain_graph=True)
        return [p * c for p, c in zip(products, scale, strict=True)]

    first = [torch.randn(s.shape, generator=generator, dtype=s.dtype).to(s.device) for s in leaves]
    dominant = _power_iteration(product, first, iterations)
    if dominant >= 0:
        return dominant

    def shifted_product(vector: list[Tensor]) -> list[Tensor]:  # its eigenvalues are all >= 0, in the same order
        return [p - dominant * v for p, v in zip(product(vector), vector, strict=True)]

    return _power_iteration(shifted_product, first, iterations) + dominant


def _power_iteration(product: Callable[[list[Tensor]], list[Tensor]], vector: list[Tensor], iterations: int) -> float:
    """Rayleigh quotient after `iterations` products: the eigenvalue of largest size."""
    quotient = 0.0
    for _ in range(iterations):
        length = _dot(vector, vector) ** 0.5
        if length == 0:
            return 0.0
        vector = [v / length for v in vector]
        image = product(vector)
        quotient = _dot(vector, image)
        vector = image
    return quotient


def _projected(offset: Tensor, scores: Tensor, radius: float) -> Tensor:
    longest = radius * scores.norm()
    factor: Tensor = (longest / offset.norm().clamp_min(1e-12)).clamp_max(1)
    return offset * factor


def _dot(first: list[Tensor], second: list[Tensor]) -> float:
    return float(sum((a * b).sum(dtype=torch.float64) for a, b in zip(first, second, strict=True)))
