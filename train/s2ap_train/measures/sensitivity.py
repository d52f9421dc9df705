"""How a network's loss reacts to its input: size, curvature and steadiness of the input gradient.

A smaller, smoother gradient is robustness only when attacks get weaker with it; alone it may be gradient masking. Read
these figures next to the checks of `s2ap_train.measures.sanity`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import Array, on_device
from s2ap_train.attacks.pgd import pgd
from s2ap_train.measures.predictions import Model, batches_of
from s2ap_train.models.modes import device_of, evaluation_mode

_BATCH = 256


@dataclass(frozen=True)
class Sensitivity:
    """Input gradients of the cross-entropy, means over the images.

    Attributes:
        samples: Images.
        gradient_l1: ||g||_1 of an image's gradient g, loss per pixel unit: to first order, eps times it is the rise of
            the loss under an l_inf attack of radius eps.
        gradient_l2: ||g||_2.
        curvature: ||g(x + h d) - g(x)||_2 / h along the gradient's direction d = g / ||g||_2; images with g = 0 do not
            count. None when there is no other.
        step_cosine: Cosine of the gradients at consecutive points of PGD, over the pixels that the step moved (at the
            edge of the ball a pixel stays, and so would its gradient): 1 = a straight path, 0 or below =
            gradients that say nothing about the next point (shattered). None when no gradient moves anything.
        zero_gradients: Share of gradient elements that are exactly 0.
        images_without_gradient: Share of images whose whole gradient is exactly 0: no first-order attack moves them.
    """

    samples: int
    gradient_l1: float
    gradient_l2: float
    curvature: float | None
    step_cosine: float | None
    zero_gradients: float
    images_without_gradient: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def sensitivity(
    model: Model,
    images: Array,
    labels: Array,
    *,
    eps: float,
    steps: int = 10,
    seed: int = 0,
    length: float = 0.01,
) -> Sensitivity:
    """Measure the input gradients of a network on clean images and along PGD.

    Curvature by finite differences along the gradient as in Moosavi-Dezfooli et al. 2019 (arXiv 1811.09716), with the
    gradient's own direction instead of its sign; gradient cosine as an indicator of masking after Athalye et al. 2018
    (arXiv 1802.00420).

    Args:
        model: The network.
        images: float32 [N, C, H, W] in [0, 1].
        labels: int64 [N].
        eps: Radius of PGD, pixels; its step is 2.5 eps / steps.
        steps: Steps of PGD, at least 2.
        seed: Of its random start.
        length: Finite-difference step h, Euclidean, pixels. A tiny one sees one linear piece of a ReLU network only.

    Raises:
        RecipeError: If there are no images, eps or length is not positive, or steps is below 2.
    """
    if len(images) == 0 or eps <= 0 or length <= 0 or steps < 2:
        raise RecipeError(
            f"sensitivity needs images, eps and length above 0 and at least 2 steps; found {len(images)} images, "
            f"eps {eps}, length {length} and {steps} steps"
        )
    all_images, all_labels = on_device(device_of(model), images, labels)
    generator = torch.Generator().manual_seed(seed)
    gradients, curvatures, cosines = [], [], []
    with evaluation_mode(model):
        for x, y in zip(batches_of(all_images, _BATCH), batches_of(all_labels, _BATCH), strict=True):
            gradient = input_gradients(model, x, y)
            gradients.append(gradient.flatten(1))
            curvatures.append(_curvature(model, x, y, gradient, length))
            path = gradients_along_pgd(model, x, y, eps=eps, steps=steps, generator=generator)
            cosines.append(_step_cosines(*path))
    found = torch.cat(gradients)  # [N, C H W]
    return Sensitivity(
        samples=len(found),
        gradient_l1=float(found.abs().sum(1).mean()),
        gradient_l2=float(found.norm(dim=1).mean()),
        curvature=_mean(torch.cat(curvatures)),
        step_cosine=_mean(torch.cat(cosines)),
        zero_gradients=float((found == 0).double().mean()),
        images_without_gradient=float((found == 0).all(1).double().mean()),
    )


def input_gradients(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each image's cross-entropy in its pixels, shape of x [N, C, H, W].

    A model whose output does not depend on x for autograd has gradient 0.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        loss = cross_entropy(connected(model)(x), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient.detach()


def connected(model: Model) -> Model:
    """The same logits, always differentiable: a model without a gradient (detached, rounded) has gradient 0."""

    def with_gradient(x: Tensor) -> Tensor:
        return model(x) + 0 * x.sum()

    return with_gradient


def gradients_along_pgd(
    model: Model, x: Tensor, y: Tensor, *, eps: float, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Points of PGD from a random start at which it takes a gradient, and these gradients, [steps, N, C, H, W] each."""
    points: list[Tensor] = []
    gradients: list[Tensor] = []

    def keep(gradient: Tensor) -> None:
        gradients.append(gradient.detach().clone())

    def recorded(attacked: Tensor) -> Tensor:
        points.append(attacked.detach().clone())
        attacked.register_hook(keep)  # type: ignore[no-untyped-call]  # torch gives no types here
        return connected(model)(attacked)

    pgd(recorded, x, y, eps=eps, steps=steps, step_size=2.5 * eps / steps, generator=generator)
    return torch.stack(points), torch.stack(gradients)


def _curvature(model: Model, x: Tensor, y: Tensor, gradient: Tensor, length: float) -> Tensor:
    """||g(x + h d) - g(x)|| / h of the images that have a gradient, [<= N]."""
    norm = gradient.flatten(1).norm(dim=1)
    direction = gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)[:, None, None, None]
    moved = input_gradients(model, x + length * direction, y)
    rates: Tensor = (moved - gradient).flatten(1).norm(dim=1) / length
    return rates[norm > 0]


def _step_cosines(points: Tensor, gradients: Tensor) -> Tensor:
    """Cosines of consecutive gradients [steps, N, ...] over moved pixels, if both have a part there, [<= steps N]."""
    moved = (points[1:] != points[:-1]).flatten(2)
    after, before = gradients[1:].flatten(2) * moved, gradients[:-1].flatten(2) * moved
    defined = (after.norm(dim=2) > 0) & (before.norm(dim=2) > 0)
    return cosine_similarity(after[defined], before[defined], dim=1)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
