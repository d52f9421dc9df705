"""Fine-tuning: what pruning left is trained on, against the attack and against its own worst weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from s2ap_train.attacks.accuracy import Array, image_shape
from s2ap_train.models.channel_groups import channel_groups, remove_channels
from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.structures import StructureName
from s2ap_train.training import Run, Training, TrainingConfig, train_classifier


@dataclass(frozen=True)
class Tuned:
    """A pruned network after fine-tuning.

    Attributes:
        model: The network that is shipped, in evaluation mode; removed channels are gone.
        pruned: Mask, scores and history of the pruning, and the network before fine-tuning.
        tuning: The fine-tuning; None where there was none.
    """

    model: nn.Module
    pruned: PrunedModel
    tuning: Training | None


def shipped(pruned: PrunedModel, structure: StructureName, image_shape: tuple[int, int, int]) -> nn.Module:
    """A copy of the pruned network as it is shipped: closed channels are physically gone, masked weights are 0.

    All its parameters can be trained again, also where the mask search froze them.
    """
    if structure != "channel":
        return copy.deepcopy(pruned.model).requires_grad_(True)
    groups = channel_groups(pruned.model, image_shape, verify=False)
    return remove_channels(pruned.model, groups, pruned.masks).requires_grad_(True)


def finetune(
    pruned: PrunedModel,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: TrainingConfig | None,
    *,
    structure: StructureName,
    run: Run,
) -> Tuned:
    """Train what is left of a pruned network: under fixed masks, or with channels physically removed.

    Pruned weights stay exactly 0. `config.weight_radius` perturbs the surviving weights adversarially, in masked norms:
    v_l = gamma * ||w_l m_l|| * g_l m_l / ||g_l m_l|| (Wu et al. 2020, arXiv 2004.05884). Methods that are compared must
    be fine-tuned with the same configuration; None ships the pruned network as it is. Arguments as in `prune`.
    """
    model = shipped(pruned, structure, image_shape(images))
    if config is None:
        return Tuned(model, pruned, None)
    masks = {} if structure == "channel" else dict(pruned.masks)
    tuning = train_classifier(model, images, labels, validation, config, run=run, trained=True, masks=masks)
    return Tuned(model, pruned, tuning)
