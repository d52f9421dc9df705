"""Feature importance-aware attack: take away the features that carry the label, whatever the pixels around them."""

from __future__ import annotations

import torch
from torch import Tensor

from s2ap_defend.types import Float32, Int64
from s2ap_train.attacks.budget import project
from s2ap_train.attacks.hidden_layer import Features, hidden_layer
from s2ap_train.attacks.right_images import BATCH, Classifier, attack_right_images

_TINY = 1e-12


def fia(
    classifier: Classifier,
    images: Float32,
    labels: Int64,
    *,
    seed: int,
    eps: float = 0.03,
    steps: int = 10,
    step_size: float | None = None,
    momentum: float = 1.0,
    masks: int = 30,
    keep: float = 0.7,
    layer: str | None = None,
    batch_size: int = BATCH,
) -> Float32:
    """Attacked images [N, C, H, W] after the feature importance-aware attack.

    Wang et al. 2021, section 3 (arXiv 2107.14185): with w the `aggregate_gradient` of the label's logit, momentum steps
    (Dong et al. 2018) that lower <h(x'), w / ||w||>, each image for itself.

    Args:
        classifier: A torch module; what it returns for the label is the logit of the paper.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        seed: Of the masks.
        eps: l_inf budget, pixels in [0, 1].
        steps: Momentum steps.
        step_size: Their length, pixels; None = eps / steps.
        momentum: Decay of the accumulated gradient.
        masks: Random masks, each image's own.
        keep: Probability that a mask keeps a value of the image.
        layer: Name of the hidden layer h; None = `middle_layer`.
        batch_size: Images attacked at once.

    Raises:
        RecipeError: If the classifier is no torch module or has no such layer.
        InputError: If images and labels are not as stated.
        ValueError: If a number is out of its range.
    """
    length = eps / steps if step_size is None and steps > 0 else step_size
    if eps < 0 or steps < 1 or length is None or length < 0 or masks < 1 or not 0 < keep <= 1:
        raise ValueError(
            f"fia needs eps >= 0, steps >= 1, step_size >= 0, masks >= 1 and keep in (0, 1]; found {eps}, {steps}, "
            f"{length}, {masks} and {keep}"
        )
    features, generator = hidden_layer(classifier, layer), torch.Generator().manual_seed(seed)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        importance = aggregate_gradient(features, x, y, masks=masks, keep=keep, generator=generator)
        return suppress(features, x, importance, eps=eps, steps=steps, step_size=length, momentum=momentum)

    return project(attack_right_images(classifier, images, labels, attack, batch_size=batch_size), images, eps)


def aggregate_gradient(
    features: Features, x: Tensor, y: Tensor, *, masks: int, keep: float, generator: torch.Generator
) -> Tensor:
    """Mean over random masks of the gradient of the label's logit in the features h, of length 1 per image [N, ...].

    Equation 3 of Wang et al. 2021: each mask keeps a value with probability `keep` and sets it to 0 otherwise.
    """
    total: Tensor | None = None
    for _ in range(masks):
        kept = (torch.rand(x.shape, generator=generator, device=generator.device) < keep).to(x.device)
        with torch.enable_grad():  # the images ask for gradients so that the graph also reaches h of frozen weights
            h, logits = features((x * kept).requires_grad_())
            (gradient,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), h)
        total = gradient if total is None else total + gradient
    if total is None:
        raise ValueError("the mean gradient needs at least one mask")
    return _unit(total)


def suppress(
    features: Features, x: Tensor, importance: Tensor, *, eps: float, steps: int, step_size: float, momentum: float
) -> Tensor:
    """Images [N, C, H, W] within eps of x whose features have the least inner product with their importance."""
    lower, upper = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    moved, accumulated = x, torch.zeros_like(x)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            h, _ = features(moved)
            (gradient,) = torch.autograd.grad((h * importance).sum(), moved)
        size = gradient.abs().flatten(1).sum(1).clamp_min(_TINY)[:, None, None, None]
        accumulated = momentum * accumulated + gradient / size
        moved = (moved.detach() - step_size * accumulated.sign()).clamp(lower, upper)
    return moved.detach()


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.flatten(1).norm(dim=1).clamp_min(_TINY)
    unit: Tensor = vectors / length.reshape(-1, *[1] * (vectors.ndim - 1))
    return unit
