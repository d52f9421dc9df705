"""Square attack: a random search of square patches that needs answers only, no gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from s2ap_defend.types import Float32, Float64, Int64
from s2ap_train.attacks.budget import project
from s2ap_train.attacks.right_images import BATCH, Classifier, check_images, in_batches, label_margin
from s2ap_train.models.modes import device_of, evaluation_mode

Score = Callable[[Float32, Int64], Float64]
"""Images [N, C, H, W] and labels [N] -> what the attacker lowers [N]; below 0 it has won."""


def square(
    classifier: Classifier,
    images: Float32,
    labels: Int64,
    *,
    seed: int,
    eps: float = 0.03,
    queries: int = 5000,
    batch_size: int = BATCH,
) -> Float32:
    """Attacked images [N, C, H, W] after `square_search` on the margin of the label's logit.

    Args:
        classifier: Images [N, C, H, W] in [0, 1] -> logits [N, K]; only asked, no gradient is used.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        seed: Of the search.
        eps: l_inf budget, pixels.
        queries: Queries per image.
        batch_size: Images asked at once.

    Raises:
        InputError: If images and labels are not as stated.
    """
    check_images(images, labels)
    with evaluation_mode(classifier):
        score = margin_score(classifier, batch_size=batch_size)
        return project(square_search(score, images, labels, eps=eps, queries=queries, seed=seed), images, eps)


def margin_score(classifier: Classifier, *, batch_size: int = BATCH) -> Score:
    """Logit of the label less the largest other; below 0 exactly where another label is answered, ties too.

    Args:
        classifier: Images [N, C, H, W] in [0, 1] -> logits [N, K], in evaluation mode.
        batch_size: Images asked at once.
    """
    device = device_of(classifier)

    def score(images: Float32, labels: Int64) -> Float64:
        logits = in_batches(classifier, torch.from_numpy(images).to(device), batch_size).double().cpu().numpy()
        margin = label_margin(logits, labels)
        return np.where(logits.argmax(1) != labels, np.minimum(margin, -1e-6), margin)

    return score


def square_search(
    score: Score,
    images: Float32,
    labels: Int64,
    *,
    eps: float,
    queries: int,
    seed: int,
    batch_size: int | None = None,
) -> Float32:
    """Attacked images [N, C, H, W] after a random search of square patches; those that score below 0 stay.

    Andriushchenko et al. 2020 (arXiv 1912.00049), as in pyautoattack, with any score instead of the margin.

    Args:
        score: What the attacker lowers.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        eps: l_inf budget, pixels in [0, 1].
        queries: Queries per image.
        seed: Of the search.
        batch_size: Images that share their squares and are searched together; None: all.
    """
    attacked = images.copy()
    if queries < 1 or len(images) == 0:
        return attacked
    rows = np.flatnonzero(score(images, labels) >= 0.0)
    if len(rows) == 0:
        return attacked
    attack = _ByScore(score, eps=eps, queries=queries, seed=seed)
    with torch.random.fork_rng(devices=[]):  # the library draws from the global generator: it is given back untouched
        torch.manual_seed(seed)
        size = batch_size or len(rows)
        for batch in (rows[start : start + size] for start in range(0, len(rows), size)):
            x, y = torch.from_numpy(images[batch]), torch.from_numpy(labels[batch])
            attack.init_hyperparam(x)
            attacked[batch] = attack.attack_single_run(x, y)[1].numpy()
    return attacked


class _ByScore(SquareAttack):  # type: ignore[misc]
    """Square that lowers a score."""

    def __init__(self, score: Score, *, eps: float, queries: int, seed: int) -> None:
        super().__init__(predict=None, norm="Linf", n_queries=queries, eps=eps, seed=seed)
        self._score = score

    def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        score = self._score(x.numpy(), y.numpy())
        # the library stops at margins <= 0, in float32: keep what is not a success strictly above
        value = torch.from_numpy(np.where(score < 0.0, -1.0, np.maximum(score, 1e-6)).astype(np.float32))
        return value, value.clone()

    def random_int(self, low: int = 0, high: int = 1, shape: tuple[int, ...] = (1,)) -> Tensor:
        """Include `high`: the library's squares never reach the last row and column."""
        return (low + (high - low + 1) * torch.rand(shape)).long()
