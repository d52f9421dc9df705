"""Projected gradient descent in the maximum norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


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
) -> Tensor:
    """Images within `eps` of `x` that raise the cross-entropy of label `y`.

    Madry et al. 2018, section 2.1 (arXiv 1706.06083): steps along the sign of the gradient, projected onto the
    l_inf ball around x and the box [0, 1]. Evaluation mode is the caller's duty. The result is the last iterate, not
    the worst one.

    Args:
        model: Any differentiable function from images [N, C, H, W] in [0, 1] to logits [N, K].
        x: Clean images, float32 [N, C, H, W] in [0, 1].
        y: Labels, int64 [N].
        eps: Radius of the ball, pixels in [0, 1].
        steps: Number of gradient steps.
        step_size: Length of a step, pixels.
        generator: Source of the random start; needed only for it.
        random_start: Start from a uniform point of the ball instead of x.

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
    if random_start:
        if generator is None:
            raise ValueError("a random start needs a generator; pass generator=torch.Generator().manual_seed(...)")
        uniform = torch.rand(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
        adversarial = (x + eps * (2 * uniform - 1)).clamp(lower, upper)
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        with torch.enable_grad():
            loss = cross_entropy(model(adversarial), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = (adversarial.detach() + step_size * gradient.sign()).clamp(lower, upper)
    return adversarial.detach()
