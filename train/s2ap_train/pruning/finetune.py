"""Fine-tuning under fixed masks, with adversarial perturbation of the surviving weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from s2ap_train.attacks.accuracy import Array
from s2ap_train.training import OnEpoch, Training, TrainingConfig, train_classifier


@dataclass(frozen=True)
class Finetune:
    """Hyper-parameters of `finetune`; `training.weight_radius` is AWP's gamma."""

    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(epochs=6, lr=0.05, eps=0.15, weight_radius=0.005)
    )


def finetune(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: Finetune,
    *,
    masks: Mapping[str, Tensor],
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> Training:
    """Train the surviving weights of a pruned network in place; pruned weights stay exactly 0.

    Adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884) with masked norms:
    v_l = gamma * ||w_l m_l|| * g_l m_l / ||g_l m_l||. A baseline compared with S2AP must be fine-tuned with the same
    `weight_radius`. Arguments and errors as in `train_classifier`.
    """
    return train_classifier(
        model, images, labels, validation, config.training, seed=seed, masks=masks, on_epoch=on_epoch
    )
