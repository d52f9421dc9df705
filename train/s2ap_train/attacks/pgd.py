"""Projected gradient descent in the maximum norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Objective = Callable[[Tensor, Tensor], Tensor]
"""Logits [N, K] and labels [N] -> what an attack raises, summed over the batch."""


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    generator: torch.Generator | None = None,
    random_start: bool = True,
    start: Tensor | None = None,
    objective: Objective | None = None,
) -> Tensor:
    """Images within `eps` of `x` that raise the cross-entropy of label `y`, or another objective.

    Madry et al. 2018, section 2.1 (arXiv 1706.06083): steps along the sign of the gradient, projected onto the
    l_inf ball around x and the box [0, 1]. Evaluation mode is the caller's duty. The result is the last iterate, not
    the worst one.

    Under float16 autocast the gradient at each image's logits is brought to length 1 before it goes back through the
    network: the sign that is sought stays the same, and what float16 would round to 0 does not vanish.

    Args:
        model: Any differentiable function from images [N, C, H, W] in [0, 1] to logits [N, K].
        x: Clean images, float32 [N, C, H, W] in [0, 1].
        y: Labels, int64 [N].
        eps: Radius of the ball, pixels in [0, 1].
        steps: Number of gradient steps.
        step_size: Length of a step, pixels.
        generator: Source of the random start; needed only for it.
        random_start: Start from a uniform point of the ball instead of x.
        start: Start from these images, brought into the ball and the box, instead of a random point.
        objective: What to raise; None is the cross-entropy. A sum over images, so that each follows its own.

    Returns:
        Adversarial images, float32 [N, C, H, W], detached.

    Raises:
        ValueError: If `eps` or `step_size` is negative, `steps` below one, or a random start has no generator.
    """
    if eps < 0 or step_size < 0 or steps < 1:
        raise ValueError(f"pgd needs eps >= 0, step_size >= 0 and steps >= 1; found {eps}, {step_size} and {steps}")
    x = x.detach()
    lower, upper = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    adversarial = x
    if start is not None:
        adversarial = start.detach().clamp(lower, upper)
    elif random_start:
        if generator is None:
            raise ValueError("a random start needs a generator; pass generator=torch.Generator().manual_seed(...)")
        uniform = torch.rand(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
        adversarial = (x + eps * (2 * uniform - 1)).clamp(lower, upper)
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        gradient = _gradient(model, adversarial, y, cross_entropy_sum if objective is None else objective)
        adversarial = (adversarial.detach() + step_size * gradient.sign()).clamp(lower, upper)
    return adversarial.detach()


def cross_entropy_sum(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of labels [N] under logits [N, K], summed over the batch."""
    return cross_entropy(logits, y, reduction="sum")


def margin_sum(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit less the label's, summed over the batch; above 0 for an image that is misclassified.

    Unlike the cross-entropy it never saturates.
    """
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return (others - logits.gather(1, y[:, None])[:, 0]).sum()


def _gradient(model: Callable[[Tensor], Tensor], images: Tensor, y: Tensor, objective: Objective) -> Tensor:
    """Gradient of the objective in the images; under float16 autocast, up to a positive factor for each image."""
    with torch.enable_grad():
        logits = model(images)
        if not _in_half_precision(images.device):
            (gradient,) = torch.autograd.grad(objective(logits, y), images)
            return gradient
        leaf = logits.detach().float().requires_grad_()
        (at_logits,) = torch.autograd.grad(objective(leaf, y), leaf)
        unit = at_logits / at_logits.norm(dim=1, keepdim=True).clamp_min(torch.finfo(at_logits.dtype).tiny)
        (gradient,) = torch.autograd.grad(logits, images, unit.to(logits.dtype))
    return gradient


def _in_half_precision(device: torch.device) -> bool:
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
