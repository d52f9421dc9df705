"""What every validated epoch is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from s2ap_train.attacks.accuracy import Array, on_device, robust_accuracy
from s2ap_train.compute import Compute
from s2ap_train.compute.memory import images_at_once
from s2ap_train.models.modes import device_of, evaluation_mode
from s2ap_train.training.config import TrainingConfig

_VALIDATION_SEED = 2024
_BATCH = 512


def validate(
    model: Callable[[Tensor], Tensor], validation: tuple[Array, Array], config: TrainingConfig
) -> dict[str, float]:
    """Accuracy on the validation set and, where the training is adversarial, the robust one at the full eps.

    `largest_class_share` is the fraction of the predictions that the most predicted class has, on clean images.
    """
    images, labels = on_device(device_of(model), *validation)
    with evaluation_mode(model), torch.no_grad():
        predicted = torch.cat(
            [model(part).argmax(1) for part in torch.split(images, images_at_once(_BATCH, images.shape))]
        )  # [N]
    record = {
        "validation_accuracy": int((predicted == labels).sum()) / len(labels),
        "largest_class_share": int(predicted.bincount().max()) / len(labels),
    }
    if config.adversarial:
        record["validation_robust_accuracy"] = robust_accuracy(
            model, images, labels, eps=config.eps, steps=config.validation_steps, seed=_VALIDATION_SEED
        )
    return record


def validate_alike(
    model: Callable[[Tensor], Tensor], validation: tuple[Array, Array], config: TrainingConfig, compute: Compute
) -> dict[str, float]:
    """`validate` in the precision of training; every process gets the same figures, rounding for rounding."""
    with compute.autocast():
        record = validate(model, validation, config)
    if compute.world_size == 1:
        return record
    values = torch.tensor(list(record.values()), dtype=torch.float64, device=compute.device)
    return dict(zip(record, compute.mean([values])[0].tolist(), strict=True))


def accuracies(metrics: Mapping[str, float]) -> str:
    """What to show of an epoch of a classifier: accuracy, robust accuracy and mask flips, as far as they are there."""
    names = {"validation_accuracy": "accuracy", "validation_robust_accuracy": "robust", "flip_rate": "mask flips"}
    return "  ".join(f"{text} {metrics[key]:.1%}" for key, text in names.items() if key in metrics)
