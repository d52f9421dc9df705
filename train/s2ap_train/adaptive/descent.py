"""Projected descent with a step size per sample that halves when progress stalls (Auto-PGD)."""

from collections.abc import Callable

import torch
from torch import Tensor

from s2ap_train.adaptive.regions import Region

__all__ = ["Check", "Loss", "descend"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(points [n, C, H, W], rows [n]) -> loss per sample [n]; rows index the samples that the descent was started with."""

Check = Callable[[Tensor, Tensor], Tensor]
"""(points, rows) -> True where the sample is solved and needs no further steps [n]."""


def descend(
    loss: Loss,
    start: Tensor,
    region: Region,
    *,
    steps: int,
    first_step: float,
    check: Check,
    check_every: int = 5,
) -> None:
    """Minimise a loss per sample inside a region, handing iterates to `check` as they come.

    Croce and Hein 2020, algorithm 1 (arXiv 2003.01690): steps with momentum .75, in an l_inf ball along the gradient's
    sign, in an l2 ball along the normalised gradient; at each checkpoint a sample that improved in less than three
    quarters of its steps, or whose best loss and step did not change, returns to its best point with half the step.
    Samples that `check` calls solved leave the batch. Nothing is returned: what counts is what `check` has seen, which
    is every sample's iterate and best point every few steps and at the end.

    Args:
        loss: The loss.
        start: First points [N, C, H, W], inside the region.
        region: What the points stay in.
        steps: Gradient steps.
        first_step: Length of the first steps, in pixels, in the region's norm.
        check: Judges points.
        check_every: Steps between checks.
    """
    checkpoints = _checkpoints(steps)
    rows = torch.arange(len(start), device=start.device)
    step = torch.full((len(start), *[1] * (start.dim() - 1)), first_step, dtype=start.dtype, device=start.device)
    point, before = start.clone(), start.clone()
    value, gradient = _gradient(loss, point, rows)
    best, best_value, best_gradient = point.clone(), value.clone(), gradient.clone()
    improved = torch.zeros_like(value)
    halved, value_then = torch.ones_like(value, dtype=torch.bool), value.clone()
    since = 0
    for i in range(steps):
        plain = region.project(point - step * region.direction(gradient))
        pull = 0.75 if i > 0 else 1.0
        moved = region.project(point + pull * (plain - point) + (1.0 - pull) * (point - before))
        before, point, value_before = point, moved, value
        value, gradient = _gradient(loss, point, rows)
        improved += value < value_before
        better = value < best_value
        best = torch.where(_wide(better, best), point, best)
        best_gradient = torch.where(_wide(better, best), gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        since += 1
        if (i + 1) % check_every == 0 or i + 1 == steps:
            keep = ~check(point, rows)
            if keep.any():
                keep[keep.clone()] = ~check(best[keep], rows[keep])
            if not keep.any():
                return
            if not keep.all():
                region = region.rows(keep)
                point, before, best, step = (t[keep] for t in (point, before, best, step))
                gradient, best_gradient = gradient[keep], best_gradient[keep]
                value, best_value, value_then = value[keep], best_value[keep], value_then[keep]
                improved, halved, rows = improved[keep], halved[keep], rows[keep]
        if i + 1 in checkpoints:
            stalled = (improved < 0.75 * since) | (~halved & (value_then <= best_value))
            step = torch.where(_wide(stalled, step), step / 2, step)
            point = torch.where(_wide(stalled, point), best, point)
            gradient = torch.where(_wide(stalled, point), best_gradient, gradient)
            value = torch.where(stalled, best_value, value)
            halved, value_then, improved, since = stalled, best_value.clone(), torch.zeros_like(improved), 0


def _gradient(loss: Loss, point: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    variable = point.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(variable, rows)
        if not value.requires_grad:  # cut off, by a cast to integers for one: there is no way down
            return value, torch.zeros_like(variable)
        (gradient,) = torch.autograd.grad(value.sum(), variable)
    return value.detach(), torch.nan_to_num(gradient)


def _checkpoints(steps: int) -> set[int]:
    """Step counts at which progress is judged: after 22 % of the steps, then at intervals that shrink to 6 %."""
    shares, gap = [0.22], 0.22
    while shares[-1] < 1.0:
        gap = max(gap - 0.03, 0.06)
        shares.append(shares[-1] + gap)
    return {max(1, -(-int(share * steps * 1000) // 1000)) for share in shares if share < 1.0}


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (like.dim() - 1))
