"""The plain alternative to a defence: one adversarially trained classifier that costs as much as all of its parts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.model_file import ModelFile
from s2ap_defend.types import Float32
from s2ap_train.calibration.flops import clean_flops
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import Splits
from s2ap_train.hardening.network import Network
from s2ap_train.hardening.parts import train_dense
from s2ap_train.models import create, onnx_network, user_network
from s2ap_train.models.cost import flops
from s2ap_train.models.table import as_table
from s2ap_train.recipe import Recipe
from s2ap_train.redteam.ablation.compute import file_flops
from s2ap_train.storage.parts import PartStore

__all__ = ["NAME", "defence_flops", "wider_classifier", "wider_network"]

NAME = "wider"
"""Of the part and its folder."""
_HALVINGS = 12  # of a factor of two: to 2e-4 of a width
_WIDEST = 64.0
_RESNET_SIDE = 16  # pixels that a ResNet needs


def defence_flops(file: ModelFile, images: Float32) -> float:
    """Floating-point operations that a file spends on a clean image, a multiply-add counted as 2.

    Convolutions and matrix products of purifier, classifier and the members that are asked, in whole waves.

    Args:
        file: The opened model file.
        images: Clean images [N, C, H, W]; their mean counts.
    """
    return clean_flops(file_flops(file), file.manifest.to_test(), StageEngines.from_file(file, threads=1).ask(images))


def wider_network(recipe: Recipe, image_shape: tuple[int, int, int], classes: int, wanted: float) -> dict[str, Any]:
    """The recipe's network with its channels scaled so that it costs what is wanted, as nearly as whole channels allow.

    Args:
        recipe: Its `model`, or one of ours where that takes no factor `width`.
        image_shape: (C, H, W).
        classes: Number of classes.
        wanted: Floating point operations of one image.

    Raises:
        RecipeError: If what is wanted is out of reach of the network's widths.
    """
    table = _table(recipe, image_shape)
    before = float(table.get("width", 1.0))

    @cache
    def cost(factor: float) -> int:
        return flops(create({**table, "width": before * factor}, image_shape, classes), image_shape)

    low = high = 1.0
    while cost(low) > wanted and low > 1.0 / _WIDEST:
        low, high = low / 2, low
    while cost(high) < wanted and high < _WIDEST:
        low, high = high, high * 2
    if not cost(low) <= wanted <= cost(high):
        raise RecipeError(
            f"no width of the recipe's network, from {1 / _WIDEST:g} to {_WIDEST:g} times its channels, costs "
            f"{wanted:.3g} floating point operations; leave the wider classifier out"
        )
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if cost(middle) <= wanted else (low, middle)
    nearest = min((low, high), key=lambda factor: abs(np.log(cost(factor) / wanted)))
    return {**table, "width": before * nearest}


def wider_classifier(recipe: Recipe, splits: Splits, store: PartStore, wanted: float) -> Network:
    """The adversarially trained classifier of `wider_network`, kept as a part: trained once, and on after a kill.

    It is trained as the recipe's adversarial network, with the learning rate divided by the factor of the width: the
    recipe's own rate lets a network of many times the channels diverge. Nothing else is tuned for it.

    Args:
        recipe: Gives the network and `adversarial`, its training.
        splits: The data; train and validation are used.
        store: Keeps it under NAME.
        wanted: Floating point operations of one image, as `defence_flops` counts them.

    Raises:
        RecipeError: As `wider_network`.
    """
    table = wider_network(recipe, splits.image_shape, len(splits.classes), wanted)
    factor = table["width"] / float(_table(recipe, splits.image_shape).get("width", 1.0))
    own = recipe.from_fresh_weights
    training = replace(own, lr=own.lr / max(1.0, factor))
    return train_dense(recipe.model_copy(update={"model": table}), splits, NAME, training, store)


def _table(recipe: Recipe, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The recipe's network, or one of ours in the place of a user's, whose channels nobody here can scale."""
    table = dict(as_table(recipe.model))
    if table["name"] not in {user_network.NAME, onnx_network.NAME}:
        return table
    return {"name": "resnet18", "width": 0.25} if min(image_shape[1:]) >= _RESNET_SIDE else {"name": "small_cnn"}
