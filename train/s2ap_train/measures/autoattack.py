"""AutoAttack, the usual yardstick of robust accuracy, by the library pyautoattack."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32, Int64
from s2ap_train.attacks.accuracy import Array, on_device
from s2ap_train.attacks.right_images import class_count
from s2ap_train.measures.predictions import Model, logits, predictions
from s2ap_train.models.modes import device_of, evaluation_mode

Loss = Literal["ce", "dlr"]

FEWEST_FOR_DLR = 3
"""Classes that the difference-of-logits ratio exists for."""
_FEWEST_CLASSES = 4  # that the targeted DLR loss can tell apart
_FOR_FEW_CLASSES = ("apgd-ce", "fab-t", "square")
_TARGETS = 9  # wrong classes that each image is pushed to


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack left of a network's accuracy.

    Attributes:
        attacks: In the order they were run; each sees only what the ones before it did not break.
        eps: Radius, l_inf, pixels.
        seed: Of everything random.
        samples: Images.
        clean_accuracy: Share right without attack.
        robust_accuracy: Share right after all attacks.
    """

    attacks: tuple[str, ...]
    eps: float
    seed: int
    samples: int
    clean_accuracy: float
    robust_accuracy: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "attacks": list(self.attacks)}


def autoattack(
    model: nn.Module,
    images: Array,
    labels: Array,
    *,
    eps: float,
    seed: int,
    iterations: int = 100,
    queries: int = 5000,
    batch_size: int = 250,
) -> AutoAttackResult:
    """Run AutoAttack's standard version: APGD-CE, targeted APGD-DLR, targeted FAB, Square (l_inf).

    Croce and Hein 2020 (arXiv 2003.01690). With fewer than 10 classes every wrong class is a target; with fewer than 4
    the targeted DLR loss does not exist and is left out. With fewer iterations or queries than the defaults the result
    is no longer that of the published yardstick.

    Args:
        model: Images [N, C, H, W] in [0, 1] -> logits [N, K].
        images: float32 [N, C, H, W] in [0, 1].
        labels: int64 [N].
        eps: Radius, pixels.
        seed: Of starts and searches; the global random state is left as it was.
        iterations: Steps of each gradient attack.
        queries: Of Square, an image.
        batch_size: Images attacked at once.
    """
    x, y = on_device(device_of(model), images, labels)
    attacked, attacks, clean = autoattacked(
        model, x, y, eps=eps, seed=seed, iterations=iterations, queries=queries, batch_size=batch_size
    )
    with evaluation_mode(model):
        right = clean & (predictions(model, attacked, batch_size=batch_size).to(x.device) == y)
    return AutoAttackResult(
        attacks=attacks,
        eps=eps,
        seed=seed,
        samples=len(y),
        clean_accuracy=float(clean.double().mean()),
        robust_accuracy=float(right.double().mean()),
    )


def autoattacked(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int,
    iterations: int = 100,
    queries: int = 5000,
    batch_size: int = 250,
) -> tuple[Tensor, tuple[str, ...], Tensor]:
    """(Images after AutoAttack [N, C, H, W], its attacks, which images were right before [N]); arguments as above.

    Images that are wrong without attack, or that nothing broke, come back as they are.
    """
    with evaluation_mode(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        answers = logits(model, x, batch_size=batch_size).to(x.device)
        clean, classes = answers.argmax(1) == y, answers.shape[1]
        attacks = ("apgd-ce", "apgd-t", "fab-t", "square") if classes >= _FEWEST_CLASSES else _FOR_FEW_CLASSES
        attack = AutoAttack(
            model, attacks=[*attacks], version="custom", eps=eps, norm="Linf", seed=seed, device=x.device
        )
        attack.apgd.n_restarts = attack.apgd_targeted.n_restarts = attack.fab.n_restarts = 1
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(_TARGETS, classes - 1)
        attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = iterations
        attack.square.n_queries = queries
        found = x.clone()
        if bool(clean.any()):
            rows = clean.nonzero().flatten()
            found[rows], _ = attack.run_standard_evaluation(x[rows], y[rows], batch_size=batch_size)
    return found, attacks, clean


def apgd(
    model: Model,
    images: Float32,
    labels: Int64,
    *,
    loss: Loss,
    eps: float,
    seed: int,
    iterations: int,
    restarts: int,
    batch_size: int,
) -> Float32:
    """Images [N, C, H, W] after APGD alone, on one loss; those that it never fools come back clean.

    Arguments as of `autoattack`. Restarts go to what is still right.

    Raises:
        RecipeError: If the loss is 'dlr' and there are fewer than three classes: it divides by the distance of the
            first logit from the third.
    """
    found = images.copy()
    if loss == "dlr" and len(images):
        classes = class_count(model, images)
        if classes < FEWEST_FOR_DLR:
            raise RecipeError(
                f"the difference-of-logits ratio needs {FEWEST_FOR_DLR} classes and this network has {classes}; take "
                "the loss 'ce'"
            )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "there are .* points with zero gradient")  # a check of gradients says so
        for rows in np.array_split(np.arange(len(images)), -(-len(images) // batch_size)) if len(images) else ():
            attack = APGDAttack(
                model, n_iter=iterations, n_restarts=restarts, eps=eps, seed=seed, loss=loss, device="cpu"
            )
            x, y = torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])
            found[rows] = attack.perturb(x, y).detach().numpy()
    return found
