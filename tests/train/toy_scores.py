"""Score models in closed form: mixtures of equal Gaussians, whose densities and denoisers can be written down."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor

Net = Callable[[Tensor, float], Tensor]


def log_density(y: Tensor, centres: Tensor, spread: float, sigma: float) -> Tensor:
    """log p_sigma [B] of the mixture of N(centre, (spread^2 + sigma^2) I), centres [K, C, H, W], up to a constant."""
    variance = spread**2 + sigma**2
    distance = (y[:, None] - centres[None]).flatten(2).square().sum(dim=2)  # [B, K]
    return torch.logsumexp(-distance / (2 * variance), dim=1)


def mixture_score(centres: Tensor, spread: float) -> Net:
    """The exact noise prediction n = -sigma grad log p_sigma for that mixture."""

    def net(y: Tensor, sigma: float) -> Tensor:
        variance = spread**2 + sigma**2
        to_centres = centres[None] - y[:, None]  # [B, K, C, H, W]
        share = torch.softmax(-to_centres.square().sum(dim=(2, 3, 4)) / (2 * variance), dim=1)
        return -sigma * (share[:, :, None, None, None] * to_centres).sum(dim=1) / variance

    return net


def gaussian_average(shape: tuple[int, int, int], nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite rule for the mean over e ~ N(0, I): directions [nodes ** d, C, H, W] and their weights."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.array(list(product(points, repeat=math.prod(shape))))
    share = np.array([math.prod(w) for w in product(weights / weights.sum(), repeat=math.prod(shape))])
    return torch.from_numpy(grid).reshape(-1, *shape), torch.from_numpy(share)
