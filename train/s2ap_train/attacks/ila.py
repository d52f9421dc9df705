"""Intermediate level attack: make the change of a hidden layer longer in the direction of another attack's change."""

from __future__ import annotations

import torch
from torch import Tensor

from s2ap_defend.types import Float32, Int64
from s2ap_train.attacks.budget import project
from s2ap_train.attacks.hidden_layer import Features, hidden_layer
from s2ap_train.attacks.pgd import pgd
from s2ap_train.attacks.right_images import BATCH, Classifier, attack_right_images

_TINY = 1e-12


def ila(
    classifier: Classifier,
    images: Float32,
    labels: Int64,
    *,
    seed: int,  # noqa: ARG001 - attacks are called alike
    eps: float = 0.03,
    reference_steps: int = 10,
    reference_step_size: float | None = None,
    steps: int = 10,
    step_size: float | None = None,
    layer: str | None = None,
    batch_size: int = BATCH,
) -> Float32:
    """Attacked images [N, C, H, W] after the intermediate level attack with projection, on I-FGSM.

    Huang et al. 2019, section 3 (arXiv 1907.10823): x_ref by I-FGSM, v = h(x_ref) - h(x); then from x, sign steps that
    raise <h(x') - h(x), v> / ||v||, each image for itself. The published settings, 10 steps of .005 in eps .03 and then
    10 of .01, are read as two lengths of a step inside one ball of eps; at another eps the steps grow with it.

    Args:
        classifier: A torch module.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        seed: Unused: nothing is random. There so that attacks are called alike.
        eps: l_inf budget of the reference and of the result, pixels in [0, 1].
        reference_steps: Steps of I-FGSM.
        reference_step_size: Their length, pixels; None = eps / 6.
        steps: Steps on the hidden layer.
        step_size: Their length, pixels; None = eps / 3.
        layer: Name of the hidden layer h; None = `middle_layer`.
        batch_size: Images attacked at once.

    Raises:
        RecipeError: If the classifier is no torch module or has no such layer.
        InputError: If images and labels are not as stated.
        ValueError: If `eps` or a step is negative or a number of steps below one.
    """
    reference_length = eps / 6 if reference_step_size is None else reference_step_size
    length = eps / 3 if step_size is None else step_size
    if length < 0 or steps < 1:
        raise ValueError(f"ila needs step_size >= 0 and steps >= 1; found {length} and {steps}")
    features = hidden_layer(classifier, layer)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        reference = pgd(
            classifier, x, y, eps=eps, steps=reference_steps, step_size=reference_length, random_start=False
        )
        return along_reference(features, x, reference, eps=eps, steps=steps, step_size=length)

    return project(attack_right_images(classifier, images, labels, attack, batch_size=batch_size), images, eps)


def along_reference(
    features: Features, x: Tensor, reference: Tensor, *, eps: float, steps: int, step_size: float
) -> Tensor:
    """Images [N, C, H, W] within eps of x whose features changed most along those of the reference.

    An image whose reference changed no feature has no direction, and stays.
    """
    with torch.no_grad():
        clean = features(x)[0]
        direction = features(reference)[0] - clean
    lower, upper = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    moved = x
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            projection = projected_change(features(moved)[0], clean, direction)
            (gradient,) = torch.autograd.grad(projection.sum(), moved)
        moved = (moved.detach() + step_size * gradient.sign()).clamp(lower, upper)
    return moved.detach()


def projected_change(features: Tensor, clean: Tensor, direction: Tensor) -> Tensor:
    """<h' - h, v> / ||v|| of features h', clean features h and directions v, each [N, ...]: [N]."""
    v = direction.flatten(1)
    inner = ((features - clean).flatten(1) * v).sum(1)
    projection: Tensor = inner / v.norm(dim=1).clamp_min(_TINY)
    return projection
