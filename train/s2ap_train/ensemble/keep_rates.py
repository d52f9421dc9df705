"""How many channels each channel group of a structurally pruned member keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from s2ap_defend.errors import RecipeError


def random_keep_rates(
    groups: int, generator: torch.Generator, *, low: float = 0.1, high: float = 0.9, mean: float = 0.5
) -> list[float]:
    """A keep rate per channel group, uniform in [low, high] and then moved together until their mean is `mean`.

    Wang et al. 2021 (DOI 10.1109/ACCESS.2021.3133334) keep 10-90 % of a layer and 50 % on average. One group alone gets
    the mean.

    Raises:
        RecipeError: Unless 0 < low <= mean <= high <= 1.
    """
    check_keep_rates(low=low, high=high, mean=mean)
    rates = low + (high - low) * torch.rand(groups, generator=generator, dtype=torch.float64)
    for _ in range(100):  # what one group cannot take is shared by the others
        rates = (rates + mean - rates.mean()).clamp(low, high)
    return [float(rate) for rate in rates]


def check_keep_rates(*, low: float, high: float, mean: float) -> None:
    """Refuse what `random_keep_rates` cannot draw.

    Raises:
        RecipeError: Unless 0 < low <= mean <= high <= 1.
    """
    if not 0 < low <= mean <= high <= 1:
        raise RecipeError(f"keep rates need 0 < low <= mean <= high <= 1; found low {low}, mean {mean}, high {high}")


def kept_sizes(sizes: Sequence[int], rates: Sequence[float]) -> list[int]:
    """Channels that groups of these sizes keep: the nearest whole number, at least one."""
    return [max(1, round(size * rate)) for size, rate in zip(sizes, rates, strict=True)]
