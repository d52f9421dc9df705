"""AutoAttack, the usual yardstick of robust accuracy, by the library pyautoattack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from s2ap_train.attacks.accuracy import Array, on_device
from s2ap_train.measures.predictions import device_of, logits, predictions
from s2ap_train.models.modes import evaluation_mode

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
