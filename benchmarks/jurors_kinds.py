"""Kinds of jurors as changes of a recipe: what of a juror differs from the others besides its seed."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from s2ap_defend.errors import RecipeError
from s2ap_train.ensemble.pruned import PrunedFamily
from s2ap_train.models import create
from s2ap_train.models.cost import flops
from s2ap_train.recipe import Recipe, load_recipe
from s2ap_train.training.config import TrainingConfig

JURORS = 4
SEEDS = "seeds"
_SCALES = tuple(0.5 * 1.02**step for step in range(71))  # to 2
_TRAININGS = ("pretraining", "finetune", "pruning.training")

Changes = list[str]
"""'KEY=VALUE' of the family's table."""


def juror_family(recipe: Recipe) -> str:
    """Name of the family that jurors are made from, the first of pruned ones with members.

    Raises:
        RecipeError: If the recipe has none.
    """
    for name, family in recipe.members.items():
        if isinstance(family, PrunedFamily) and family.role == "juror" and family.count:
            return name
    raise RecipeError(f"recipe {recipe.name} has no jurors of family 'pruned'; set members.NAME.role = \"juror\"")


def juror_recipes(name: str, overrides: Sequence[str], kind: str) -> list[tuple[Recipe, list[str]]]:
    """The recipe of each juror of a kind, which is member 0 of its family, and what was changed in it.

    Args:
        name: Of the recipe.
        overrides: Of the recipe.
        kind: One of KINDS.

    Raises:
        RecipeError: If the recipe has no jurors, or none of that kind can be made of them.
    """
    recipe = load_recipe(name, overrides)
    family = juror_family(recipe)
    table = recipe.members[family]
    if not isinstance(table, PrunedFamily):  # our own bug
        raise TypeError(f"{family} is a {type(table).__name__}")
    first = recipe.member_seed(family, 0) - recipe.seed
    found = []
    for number, changes in enumerate(KINDS[kind](recipe, table)):
        own = ["count=1", f"first_seed={first + number}", *changes]
        if not any(change.startswith("models=") for change in own):
            own.append(f"models=[{_toml(_model(table))}]")
        made = [f"members.{family}.{change}" for change in own]
        found.append((load_recipe(name, [*overrides, *made]), made))
    return found


def _model(table: PrunedFamily) -> dict[str, Any]:
    model = table.models[0]
    return dict(model) if isinstance(model, Mapping) else {"name": model}


def _widths(table: PrunedFamily) -> list[int]:
    model = _model(table)
    if len(model.get("widths", ())) < 3:
        raise RecipeError(f"this kind needs a network with three widths or more, such as small_cnn, found {model}")
    return list(model["widths"])


def _toml(table: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + "}"


def _as_dear(recipe: Recipe, table: PrunedFamily, widths: Sequence[int], factor: float = 1.0, moved: int = 0) -> str:
    """The change that gives a juror these widths, scaled so that it costs `factor` times the family's network.

    Args:
        recipe: Its data decide the shape of an image.
        table: The family; its network must have widths.
        widths: Of the blocks, before they are scaled.
        factor: Of the floating-point operations.
        moved: By how many blocks the pools behind the second block move.
    """
    model = _model(table)
    if (pools := model.get("pool_after")) is not None:
        model["pool_after"] = [place + moved if place > 1 else place for place in pools]
    splits = recipe.load_data()
    shape, classes = splits.image_shape, len(splits.classes)

    def cost(scaled: Mapping[str, Any]) -> int:
        return flops(create(dict(scaled), shape, classes), shape)

    wanted = factor * cost(_model(table))
    tried = [model | {"widths": [max(1, round(scale * one)) for one in widths]} for scale in _SCALES]
    return f"models=[{_toml(min(tried, key=lambda one: abs(math.log(cost(one) / wanted))))}]"


def _everywhere(**values: float | bool) -> Changes:
    return [f"{phase}.{key}={json.dumps(value)}" for phase in _TRAININGS for key, value in values.items()]


def _seeds(*_: object) -> list[Changes]:
    return [[] for _ in range(JURORS)]


def _architecture(recipe: Recipe, table: PrunedFamily) -> list[Changes]:
    """As the family, without its second block, with it twice, and with blocks of one width."""
    widths = _widths(table)
    others = [
        ([widths[0], *widths[2:]], -1),
        ([*widths[:2], widths[1], *widths[2:]], 1),
        ([widths[len(widths) // 2]] * len(widths), 0),
    ]
    return [[], *([_as_dear(recipe, table, made, moved=moved)] for made, moved in others)]


def _sparsity(*_: object) -> list[Changes]:
    return [[f"pruning.sparsity={value}"] for value in (0.2, 0.4, 0.6, 0.8)]


def _structure(recipe: Recipe, table: PrunedFamily) -> list[Changes]:
    """Single weights, whole channels of a network that costs the same without them, and 2:4."""
    kept = 0.7
    wide = _as_dear(recipe, table, _widths(table), 1 / kept**2)
    channel = ['pruning.structure="channel"', f"pruning.sparsity={1 - kept:.1f}", wide]
    return [[], channel, ['pruning.structure="2:4"', "pruning.sparsity=0.5"], channel]


def training_of(recipe: Recipe, epochs: int) -> TrainingConfig:
    """How trained jurors are trained on: as the family is fine-tuned, half its learning rate at first.

    Raises:
        RecipeError: If the family is neither trained nor fine-tuned by itself.
    """
    table = recipe.members[juror_family(recipe)]
    if not isinstance(table, PrunedFamily):  # our own bug
        raise TypeError(f"{table} is no pruned family")
    config = _training(table)
    return replace(config, epochs=epochs, lr=config.lr / 2, eps_warmup_epochs=0)


def _training(table: PrunedFamily) -> TrainingConfig:
    if (training := table.finetune or table.pretraining) is None:
        raise RecipeError("this kind needs jurors with pretraining or finetune")
    return training


def _eps(_: Recipe, table: PrunedFamily) -> list[Changes]:
    """Trained for 0.8 to 1.4 times the family's eps, attack steps as large in it."""
    training = _training(table)
    steps = {} if training.attack_step_size is None else {"attack_step_size": training.attack_step_size}
    return [
        _everywhere(**{key: round(factor * value, 6) for key, value in ({"eps": training.eps} | steps).items()})
        for factor in (0.8, 1.0, 1.2, 1.4)
    ]


def _augmentation(*_: object) -> list[Changes]:
    """As the family, shifted by up to a pixel, mirrored, and both; a mirrored digit is none."""
    return [[], _everywhere(shift=1), _everywhere(flip=True), _everywhere(shift=1, flip=True)]


KINDS: Mapping[str, Callable[[Recipe, PrunedFamily], list[Changes]]] = {
    SEEDS: _seeds,
    "architecture": _architecture,
    "sparsity": _sparsity,
    "structure": _structure,
    "eps": _eps,
    "augmentation": _augmentation,
}
"""What differs, by name."""
