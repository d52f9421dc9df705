"""Score models for tests: mixtures of equal Gaussians, whose denoisers can be written down, and a random network."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor

from s2ap_train.purifier import UNet

Net = Callable[[Tensor, float], Tensor]


def random_unet() -> UNet:
    """A float64 score model of one channel with random weights everywhere, also where training starts at zero."""
    model = UNet(1, 8, (1, 2), seed=1).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


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
