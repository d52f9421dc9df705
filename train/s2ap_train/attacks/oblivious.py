"""Attacks on the bare classifier by an attacker that does not know of the defence (foolbox).

Unlike those of `s2ap_train.attacks.catalogue` they attack every image, also one that the classifier gets wrong: the
defended file may get it right.
"""

from typing import Any

import torch

from s2ap_defend.types import Float32
from s2ap_train.attacks.budget import project
from s2ap_train.attacks.from_foolbox import PGD_RELATIVE_STEP, PGD_STEPS, fgsm_attack, pgd_attack, run_foolbox
from s2ap_train.attacks.right_images import BATCH, Classifier, weights_frozen
from s2ap_train.data import ImageSet
from s2ap_train.models.modes import evaluation_mode

__all__ = ["PGD_RELATIVE_STEP", "PGD_STEPS", "Classifier", "fgsm", "pgd", "project"]


def fgsm(classifier: Classifier, data: ImageSet, *, eps: float, seed: int) -> Float32:
    """Fast gradient sign method (Goodfellow et al. 2015): one step of length eps [N, C, H, W].

    Args:
        classifier: What the attacker knows.
        data: Images and true labels.
        eps: l_inf budget, pixels in [0, 1].
        seed: Unused: the step is deterministic. There so that oblivious attacks are called alike.
    """
    return _run(fgsm_attack(), classifier, data, eps=eps, seed=seed)


def pgd(classifier: Classifier, data: ImageSet, *, eps: float, seed: int) -> Float32:
    """Projected gradient descent on the cross-entropy (Madry et al. 2018): 20 steps of eps / 4, random start.

    Args:
        classifier: What the attacker knows.
        data: Images and true labels.
        eps: l_inf budget, pixels in [0, 1].
        seed: Of the random start.
    """
    return _run(pgd_attack(), classifier, data, eps=eps, seed=seed)


def _run(attack: Any, classifier: Classifier, data: ImageSet, *, eps: float, seed: int) -> Float32:  # noqa: ANN401
    found = []
    # foolbox draws from the global generator, which is given back untouched, and would leave gradients in weights
    with evaluation_mode(classifier), weights_frozen(classifier), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(data), BATCH):
            batch = data.subset(slice(start, start + BATCH))
            x, y = torch.from_numpy(batch.images), torch.from_numpy(batch.labels)
            found.append(run_foolbox(attack, classifier, x, y, eps=eps))
    return project(torch.cat(found).numpy(), data.images, eps)
