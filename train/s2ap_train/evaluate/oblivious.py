"""Attacks on the bare classifier by an attacker who does not know of the defence (foolbox)."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_defend.types import Float32
from s2ap_train.data import ImageSet

_BATCH = 256
PGD_STEPS = 20
PGD_RELATIVE_STEP = 0.25

Classifier = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] in [0, 1] -> logits or log-probabilities [N, K], differentiable."""


def fgsm(classifier: Classifier, data: ImageSet, *, eps: float, seed: int) -> Float32:
    """Fast gradient sign method (Goodfellow et al. 2015): one step of length eps [N, C, H, W].

    Args:
        classifier: What the attacker knows.
        data: Images and true labels.
        eps: l_inf budget, pixels in [0, 1].
        seed: Unused: the step is deterministic. There so that oblivious attacks are called alike.
    """
    with _quiet_import():
        from foolbox.attacks.fast_gradient_method import LinfFastGradientAttack

    return _run(LinfFastGradientAttack(random_start=False), classifier, data, eps=eps, seed=seed)


def pgd(classifier: Classifier, data: ImageSet, *, eps: float, seed: int) -> Float32:
    """Projected gradient descent on the cross-entropy (Madry et al. 2018): 20 steps of eps / 4, random start.

    Args:
        classifier: What the attacker knows.
        data: Images and true labels.
        eps: l_inf budget, pixels in [0, 1].
        seed: Of the random start.
    """
    with _quiet_import():
        from foolbox.attacks.projected_gradient_descent import LinfProjectedGradientDescentAttack

    attack = LinfProjectedGradientDescentAttack(rel_stepsize=PGD_RELATIVE_STEP, steps=PGD_STEPS, random_start=True)
    return _run(attack, classifier, data, eps=eps, seed=seed)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Foolbox imports a name that SciPy has moved; its warning is none of the user's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class _Module(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self._classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self._classifier(images)


def _run(attack: Any, classifier: Classifier, data: ImageSet, *, eps: float, seed: int) -> Float32:  # noqa: ANN401
    from foolbox.criteria import Misclassification
    from foolbox.models.pytorch import PyTorchModel

    model = PyTorchModel(_Module(classifier).eval(), bounds=(0, 1), device="cpu")
    parts = []
    with torch.random.fork_rng(devices=[]):  # foolbox draws from the global generator: it is given back untouched
        torch.manual_seed(seed)
        for start in range(0, len(data), _BATCH):
            part = data.subset(slice(start, start + _BATCH))
            criterion = Misclassification(torch.from_numpy(part.labels))
            _, clipped, _ = attack(model, torch.from_numpy(part.images), criterion, epsilons=eps)
            parts.append(clipped.detach())
    return project(torch.cat(parts).numpy(), data.images, eps)


def project(attacked: Float32, images: Float32, eps: float) -> Float32:
    """The nearest images inside the l_inf ball of radius eps and inside [0, 1]."""
    lower, upper = (images - eps).clip(0.0), (images + eps).clip(max=1.0)
    return attacked.clip(lower, upper).astype("float32")
