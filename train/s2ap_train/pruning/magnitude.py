"""Pruning by the size of the weights: the baseline of every other method."""

from __future__ import annotations

from torch import nn

from s2ap_train.pruning.mask_search import PrunedModel, pruned_copy
from s2ap_train.pruning.masks import layer_masks
from s2ap_train.pruning.scores import prunable_weights


def prune_magnitude(model: nn.Module, *, sparsity: float) -> PrunedModel:
    """Keep in every layer the largest weights, the same share of each; the network itself is not changed.

    HYDRA calls it LWM; it is also the mask from which a mask search starts. To be fine-tuned.

    Raises:
        ValueError: Unless 0 <= sparsity < 1.
    """
    scores = {name: w.detach().clone() for name, w in prunable_weights(model).items()}
    masks = layer_masks(scores, 1 - sparsity)
    return PrunedModel(pruned_copy(model, masks), masks, scores, (), best_epoch=0)
