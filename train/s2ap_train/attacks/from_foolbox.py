"""Attacks that foolbox has: one-step and iterated l_inf attacks, and two that look for the nearest error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_defend.types import Float32, Int64
from s2ap_train.attacks.budget import project
from s2ap_train.attacks.right_images import BATCH, Classifier, attack_right_images

PGD_STEPS = 20
PGD_RELATIVE_STEP = 0.25


def fgsm(
    classifier: Classifier, images: Float32, labels: Int64, *, seed: int, eps: float = 0.03, batch_size: int = BATCH
) -> Float32:
    """Attacked images [N, C, H, W] after the fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572).

    Args:
        classifier: Images [N, C, H, W] in [0, 1] -> logits [N, K], differentiable.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        seed: Unused: the step is deterministic. There so that attacks are called alike.
        eps: l_inf budget and length of the step, pixels.
        batch_size: Images attacked at once.

    Raises:
        InputError: If images and labels are not as stated.
    """
    found = _on_right_images(fgsm_attack(), classifier, images, labels, seed=seed, eps=eps, batch_size=batch_size)
    return project(found, images, eps)


def pgd(
    classifier: Classifier,
    images: Float32,
    labels: Int64,
    *,
    seed: int,
    eps: float = 0.03,
    steps: int = PGD_STEPS,
    batch_size: int = BATCH,
) -> Float32:
    """Attacked images [N, C, H, W] after projected gradient descent on the cross-entropy: steps of eps / 4.

    Madry et al. 2018 (arXiv 1706.06083), from a random point of the ball. On `joint_network` it is the attack on
    classifier and members together.

    Args:
        classifier: Images [N, C, H, W] in [0, 1] -> logits [N, K], differentiable.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        seed: Of the random start.
        eps: l_inf budget, pixels.
        steps: Gradient steps.
        batch_size: Images attacked at once.

    Raises:
        InputError: If images and labels are not as stated.
    """
    attack = pgd_attack(steps)
    return project(
        _on_right_images(attack, classifier, images, labels, seed=seed, eps=eps, batch_size=batch_size), images, eps
    )


def cw_l2(
    classifier: Classifier,
    images: Float32,
    labels: Int64,
    *,
    seed: int,
    c: float = 0.6,
    steps: int = 1000,
    step_size: float = 0.01,
    searches: int = 1,
    batch_size: int = BATCH,
) -> Float32:
    """Attacked images [N, C, H, W] after the l2 attack of Carlini and Wagner 2017 (arXiv 1608.04644).

    Adam in tanh space on ||x' - x||^2 + c max(0, logit of the label - largest other); the shortest change that was
    misclassified. Images without one come back as they are.

    Args:
        classifier: Images [N, C, H, W] in [0, 1] -> logits [N, K], differentiable.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        seed: Unused: nothing is random. There so that attacks are called alike.
        c: Weight of the misclassification.
        steps: Steps of Adam in a search.
        step_size: Their size, in tanh space.
        searches: Searches; each after the first follows another c, ten times larger while nothing is found.
        batch_size: Images attacked at once; a batch stops early when its loss stands still.

    Raises:
        InputError: If images and labels are not as stated.
    """
    with quiet_import():
        from foolbox.attacks.carlini_wagner import L2CarliniWagnerAttack

    attack = L2CarliniWagnerAttack(
        binary_search_steps=searches, steps=steps, stepsize=step_size, confidence=0, initial_const=c
    )
    found = _on_right_images(attack, classifier, images, labels, seed=seed, batch_size=batch_size)
    black = (found == 0).all(axis=(1, 2, 3))  # what foolbox returns where it found nothing; tanh never reaches 0
    found[black] = images[black]
    return found


def deepfool(
    classifier: Classifier,
    images: Float32,
    labels: Int64,
    *,
    seed: int,
    steps: int = 50,
    overshoot: float = 0.02,
    batch_size: int = BATCH,
) -> Float32:
    """Attacked images [N, C, H, W] after DeepFool in l2 (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599).

    Each step goes to the nearest of the linearised borders to the ten most probable other classes.

    Args:
        classifier: Images [N, C, H, W] in [0, 1] -> logits [N, K], differentiable.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        seed: Unused: nothing is random. There so that attacks are called alike.
        steps: Steps at most.
        overshoot: How far each change goes beyond the border, as a fraction of its length.
        batch_size: Images attacked at once.

    Raises:
        InputError: If images and labels are not as stated.
    """
    with quiet_import():
        from foolbox.attacks.deepfool import L2DeepFoolAttack

    attack = L2DeepFoolAttack(steps=steps, overshoot=overshoot)
    return _on_right_images(attack, classifier, images, labels, seed=seed, batch_size=batch_size)


def fgsm_attack() -> Any:  # noqa: ANN401 - foolbox has no types
    """Foolbox's fast gradient sign method."""
    with quiet_import():
        from foolbox.attacks.fast_gradient_method import LinfFastGradientAttack

    return LinfFastGradientAttack(random_start=False)


def pgd_attack(steps: int = PGD_STEPS) -> Any:  # noqa: ANN401 - foolbox has no types
    """Foolbox's projected gradient descent with a random start and steps of a quarter of eps."""
    with quiet_import():
        from foolbox.attacks.projected_gradient_descent import LinfProjectedGradientDescentAttack

    return LinfProjectedGradientDescentAttack(rel_stepsize=PGD_RELATIVE_STEP, steps=steps, random_start=True)


def run_foolbox(
    attack: Any,  # noqa: ANN401 - foolbox has no types
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | None = None,
) -> Tensor:
    """What a foolbox attack makes of images x [N, C, H, W] with labels y [N]; it draws from the global generator.

    Args:
        attack: A foolbox attack.
        classifier: A function or a module in evaluation mode.
        x: Images in [0, 1].
        y: Labels.
        eps: Budget; None = the attack looks for the least change.
    """
    from foolbox.criteria import Misclassification

    _, clipped, _ = attack(foolbox_model(classifier, x.device), x, Misclassification(y), epsilons=eps)
    found: Tensor = clipped.detach()
    return found


def foolbox_model(classifier: Classifier, device: torch.device | str) -> Any:  # noqa: ANN401 - foolbox has no types
    """A classifier as the model that foolbox attacks: images in [0, 1] on a device."""
    with quiet_import():
        from foolbox.models.pytorch import PyTorchModel

    return PyTorchModel(_Function(classifier).eval(), bounds=(0, 1), device=device)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Foolbox imports a name that SciPy has moved; its warning is none of the user's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class _Function(nn.Module):
    """A classifier as the module that foolbox wants; a module is not registered, so its mode stays the caller's."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self._answer = [classifier]

    def forward(self, images: Tensor) -> Tensor:
        return self._answer[0](images)


def _on_right_images(
    attack: Any,  # noqa: ANN401 - foolbox has no types
    classifier: Classifier,
    images: Float32,
    labels: Int64,
    *,
    seed: int,
    batch_size: int,
    eps: float | None = None,
) -> Float32:
    def run(x: Tensor, y: Tensor) -> Tensor:
        return run_foolbox(attack, classifier, x, y, eps=eps)

    with torch.random.fork_rng(devices=[]):  # the global generator is given back untouched
        torch.manual_seed(seed)
        return attack_right_images(classifier, images, labels, run, batch_size=batch_size)
