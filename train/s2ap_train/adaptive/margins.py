"""Distances of log-probabilities from labels, in nats: y are true labels, t target labels."""

import torch
from torch import Tensor

__all__ = ["best_other", "difference_of_logits_ratio", "margin", "mean_log_probability", "targeted_margin"]


def margin(log_probabilities: Tensor, y: Tensor) -> Tensor:
    """Log-probability of y less that of the best other label [..., N], of log-probabilities [..., N, K]."""
    return -targeted_margin(log_probabilities, y)


def targeted_margin(log_probabilities: Tensor, t: Tensor) -> Tensor:
    """Log-probability of the best other label less that of t [..., N], of log-probabilities [..., N, K]."""
    of_label = log_probabilities.gather(-1, _index(log_probabilities, t))[..., 0]
    return best_other(log_probabilities, t) - of_label


def best_other(log_probabilities: Tensor, label: Tensor) -> Tensor:
    """Log-probability of the best label that is not `label` [..., N]."""
    return log_probabilities.scatter(-1, _index(log_probabilities, label), -torch.inf).amax(-1)


def difference_of_logits_ratio(log_probabilities: Tensor, y: Tensor) -> Tensor:
    """Margin over the distance of the first from the third largest logit [N]; Croce and Hein 2020, equation 6."""
    if log_probabilities.shape[1] < 3:
        return margin(log_probabilities, y)
    ordered = log_probabilities.sort(dim=1, descending=True).values
    return margin(log_probabilities, y) / (ordered[:, 0] - ordered[:, 2]).clamp_min(1e-12)


def mean_log_probability(c: Tensor, m: Tensor | None) -> Tensor:
    """Mean log-probability of classifier [N, K] and members [n, N, K]; the classifier weighs a quarter at least."""
    if m is None or len(m) == 0:
        return c
    share = max(1.0 / (len(m) + 1), 0.25)
    return share * c + (1.0 - share) * m.mean(0)


def _index(log_probabilities: Tensor, label: Tensor) -> Tensor:
    return label[:, None].expand(*log_probabilities.shape[:-1], 1)
