"""Square attack, black box and end to end: it asks the system itself and needs no gradient."""

import numpy as np
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from s2ap_defend.types import Float32
from s2ap_train.data import ImageSet
from s2ap_train.evaluate.systems import System


class _EndToEnd(SquareAttack):  # type: ignore[misc]
    """Square that minimises the system's score: wrong and unflagged is below zero."""

    def __init__(self, system: System, *, eps: float, queries: int, seed: int) -> None:
        super().__init__(predict=None, norm="Linf", n_queries=queries, eps=eps, seed=seed)
        self._system = system

    def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        score = self._system(x.numpy(), y.numpy()).score
        # the library stops at margins <= 0, in float32: keep what is not a success strictly above
        value = torch.from_numpy(np.where(score < 0.0, -1.0, np.maximum(score, 1e-6)).astype(np.float32))
        return value, value.clone()

    def random_int(self, low: int = 0, high: int = 1, shape: tuple[int, ...] = (1,)) -> Tensor:
        """Include `high`: the library's squares never reach the last row and column."""
        return (low + (high - low + 1) * torch.rand(shape)).long()


def square(system: System, data: ImageSet, *, eps: float, queries: int, seed: int) -> Float32:
    """Attacked images [N, C, H, W] after a random search of square patches (Andriushchenko et al. 2020).

    Andriushchenko et al., arXiv 1912.00049, as in pyautoattack, with the score of the system instead of its margin.
    Images that already succeed are returned as they are.

    Args:
        system: What is attacked.
        data: Images and true labels.
        eps: l_inf budget, pixels in [0, 1].
        queries: Queries per image.
        seed: Of the search.
    """
    attacked = data.images.copy()
    rows = np.flatnonzero(~system(data.images, data.labels).success)
    if len(rows) == 0 or queries < 1:
        return attacked
    attack = _EndToEnd(system, eps=eps, queries=queries, seed=seed)
    x, y = torch.from_numpy(data.images[rows]), torch.from_numpy(data.labels[rows])
    attack.init_hyperparam(x)
    with torch.random.fork_rng(devices=[]):  # the library draws from the global generator: it is given back untouched
        torch.manual_seed(seed)
        _, found = attack.attack_single_run(x, y)
    attacked[rows] = found.numpy()
    return attacked
