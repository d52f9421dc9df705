"""2:4 sparsity: two of every four neighbours along the inputs are zero, the pattern of sparse tensor cores.

Mishra et al. 2021 (arXiv 2104.08378). A group is four consecutive INPUT channels of one output, at one position of the
kernel: the axis along which the matrix product sums, which is what the hardware skips.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from s2ap_defend.errors import RecipeError
from s2ap_train.models.weights import prunable_weights

GROUP = 4
KEPT_PER_GROUP = 2


def supports_two_four(weight: Tensor) -> bool:
    """Whether the inputs of a weight [O, I, ...] come in whole groups of four; other layers stay dense."""
    return weight.dim() > 1 and weight.shape[1] % GROUP == 0


def two_four_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of a network that can have the pattern, by name; those of transposed convolutions have inputs first.

    Raises:
        RecipeError: If there are none.
    """
    found = {
        name: weight
        for name, weight in prunable_weights(model).items()
        if supports_two_four(weight) and not isinstance(model.get_submodule(name.rpartition(".")[0]), _ConvTransposeNd)
    }
    if not found:
        raise RecipeError(
            f"no layer of this {type(model).__name__} has a multiple of 4 inputs, so none can be pruned 2:4; take "
            'structure = "unstructured"'
        )
    return found


def two_four_mask(scores: Tensor) -> Tensor:
    """Mask of the 2 largest |scores| in each 4 along dim 1: convolutions [O, I, kh, kw], linear layers [O, I].

    Chosen by index, so every group keeps exactly two, whatever the ties. All True where `supports_two_four` says no.

    Raises:
        ValueError: If a score is NaN.
    """
    if scores.isnan().any():
        raise ValueError(f"scores of shape {tuple(scores.shape)} hold NaN; nothing can be ranked by them")
    if not supports_two_four(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    groups = _grouped(scores.detach().abs())
    chosen = groups.topk(KEPT_PER_GROUP, dim=-1, sorted=False).indices
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, chosen, value=True)
    return mask.flatten(-2).movedim(-1, 1).contiguous()


def two_four_masks(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`two_four_mask` of every layer by name."""
    return {name: two_four_mask(s) for name, s in scores.items()}


def is_two_four(mask: Tensor) -> bool:
    """Whether a mask [O, I, ...] keeps exactly two of each four neighbours along dim 1."""
    return supports_two_four(mask) and bool((_grouped(mask).sum(-1) == KEPT_PER_GROUP).all())


def _grouped(tensor: Tensor) -> Tensor:
    """[O, I, ...] -> [O, ..., I / 4, 4]."""
    moved = tensor.movedim(1, -1)
    return moved.reshape(*moved.shape[:-1], -1, GROUP)
