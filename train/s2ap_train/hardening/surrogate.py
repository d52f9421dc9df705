"""What stands in for the gradients of a classifier that has none here: a network trained on its labels."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch

from s2ap_train.attacks.accuracy import Array
from s2ap_train.attacks.right_images import in_batches
from s2ap_train.calibration import Weakness
from s2ap_train.data import Splits
from s2ap_train.models import Classifier, ModelTable, create, onnx_network
from s2ap_train.models.onnx_network import OnnxNetwork
from s2ap_train.models.table import as_table
from s2ap_train.recipe import Recipe
from s2ap_train.training import Run, TrainingConfig, TrainingData, train_classifier

__all__ = ["blind_attacks", "lacked_gradients", "train_surrogate"]

_BATCH = 256


def train_surrogate(
    model: Classifier, data: TrainingData, config: TrainingConfig, *, run: Run
) -> tuple[dict[str, float], ...]:
    """Train the surrogate of an ONNX file, in place, on what the file answers; a record per epoch.

    Papernot et al. 2017 (arXiv 1602.02697), with the training images instead of made ones. The epoch is chosen by how
    many labels of the file it gives to validation images.

    Args:
        model: The file; nothing is done where its gradients are its own.
        data: Images; their labels are not used.
        config: Training of the surrogate.
        run: Its context.
    """
    if not isinstance(model, OnnxNetwork) or model.surrogate is None:
        return ()

    def answers(images: Array) -> torch.Tensor:
        return in_batches(model, torch.as_tensor(images), _BATCH).argmax(1)

    images, (held_out, _) = data.images, data.validation
    learnt = held_out, answers(held_out)
    history = train_classifier(model.surrogate, images, answers(images), learnt, config, run=run).history
    model.surrogate.cpu()
    return history


def blind_attacks(recipe: Recipe, splits: Splits) -> Weakness | None:
    """What an attacker of the file cannot do here: follow the classifier's own gradients; None: it can.

    Args:
        recipe: What is hardened.
        splits: Its data.
    """
    if not recipe.from_onnx or recipe.classifier != "plain":
        return None
    lacks = lacked_gradients(recipe.model, splits)
    if not lacks:
        return None
    return Weakness(
        part="classifier",
        found=f"gradients of the classifier could not be had: {lacks}",
        instead="attacks on it went by transfer and queries, which find less",
        cure="give its torch network with --model and --weights for attacks that know it",
    )


def lacked_gradients(network: ModelTable, splits: Splits) -> str:
    """What of an ONNX file has no gradient here; empty: nothing, or it is no file. One that stays is read once.

    Args:
        network: The file's table, or another network's.
        splits: Its data.

    Raises:
        RecipeError: If the file cannot be read, or is no classifier of these images.
    """
    table = as_table(network)
    if table.get("name") != onnx_network.NAME:
        return ""
    return _lacked(
        json.dumps(table, sort_keys=True), _state(str(table.get("file"))), splits.image_shape, len(splits.classes)
    )


@lru_cache(maxsize=8)
def _lacked(table: str, _state: tuple[int, int], image_shape: tuple[int, int, int], classes: int) -> str:
    return create(json.loads(table), image_shape, classes).without_gradients


def _state(file: str) -> tuple[int, int]:
    """What changes with a file: when it was written, and its bytes."""
    try:
        found = Path(file).stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
