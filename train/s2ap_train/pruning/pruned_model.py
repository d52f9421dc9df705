"""What every pruning method hands back."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2ap_train.pruning.masks import Masks
from s2ap_train.pruning.scores import prunable_weights


@dataclass(frozen=True)
class PrunedModel:
    """A network whose pruned parts are 0, and what led there.

    Attributes:
        model: In evaluation mode.
        masks: By weight, or by channel group; True = kept.
        scores: By the same names; of some methods the weights themselves.
        history: A record per epoch. Of a mask search: loss, validation_accuracy, validation_robust_accuracy (of the
            mask, before any fine-tuning), hamming and flip_to_previous (the mask against the previous epoch's),
            flip_rate and radius (means over the epoch's ascent steps; 0 without any), and what the allocation records.
        best_epoch: Whose mask was kept, from 0.
        collapse: Why it stopped early, if it collapsed; the result is then the last good one.
        searched: The network with all its weights, of which `model` is the pruned copy; None where there is none.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    scores: dict[str, Tensor]
    history: tuple[dict[str, float], ...]
    best_epoch: int
    collapse: str | None = None
    searched: nn.Module | None = None


def pruned_copy(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of the network in evaluation mode; every weight whose mask is False is exactly 0."""
    pruned = copy.deepcopy(model).eval()
    weights = prunable_weights(pruned)
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].masked_fill_(~mask, 0.0)
    return pruned
