"""The classifiers that can be trained, and how a checkpoint names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s2ap_defend.errors import RecipeError
from s2ap_train.models import small_cnn
from s2ap_train.models.folding import evaluation_view, fold_batch_norm
from s2ap_train.models.modes import batch_norm_statistics_frozen, evaluation_mode
from s2ap_train.models.small_cnn import SmallCNN

__all__ = [
    "ARCHITECTURES",
    "SmallCNN",
    "batch_norm_statistics_frozen",
    "build",
    "evaluation_mode",
    "evaluation_view",
    "fold_batch_norm",
]

ARCHITECTURES: Mapping[str, type[SmallCNN]] = {small_cnn.NAME: SmallCNN}


def build(architecture: Mapping[str, Any], *, seed: int = 0) -> SmallCNN:
    """The network that `architecture()` described, with fresh weights from `seed`.

    Raises:
        RecipeError: If the name is unknown, or the other keys are not the arguments of that network.
    """
    arguments = dict(architecture)
    name = arguments.pop("name", None)
    if name not in ARCHITECTURES:
        raise RecipeError(f"unknown architecture {name!r}; choose one of {', '.join(sorted(ARCHITECTURES))}")
    try:
        return ARCHITECTURES[name](**arguments, seed=seed)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"architecture {name!r} cannot be built from {arguments}: {error}") from error
