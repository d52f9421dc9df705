"""The networks of a recipe, made once before anything is trained."""

from __future__ import annotations

from functools import partial

from s2ap_defend.errors import RecipeError
from s2ap_train.ensemble import check_cost
from s2ap_train.models import ModelTable, create
from s2ap_train.pruning.prunable import check_prunable
from s2ap_train.recipe.recipe import EnsembleRecipe, Recipe

__all__ = ["check_networks"]


def check_networks(recipe: EnsembleRecipe, image_shape: tuple[int, int, int], classes: int) -> None:
    """Make each network of the recipe once, so that one that cannot be made is refused before anything is trained.

    So is a network that cannot be pruned as asked, and a member that costs more than its family's `max_cost`.

    Args:
        recipe: Its plain network, and those of families that have members.
        image_shape: (C, H, W) of the data.
        classes: Number of classes.

    Raises:
        RecipeError: With the key of the first network that cannot be made, or of the family that is too dear.
    """
    new = partial(create, image_shape=image_shape, classes=classes)
    tables = {"model": recipe.model, "given.robust_model": recipe.robust_model}
    for name, family in recipe.members.items():
        tables |= {f"members.{name}.{key}": table for key, table in family.networks().items()}
    made: list[ModelTable] = []
    for key, table in tables.items():
        if table in made:
            continue
        try:
            new(table)
        except RecipeError as error:
            raise RecipeError(f"recipe {recipe.name}: {key}: {error}") from error
        made.append(table)
    for name, family in recipe.members.items():
        try:
            if family.count:
                family.check(recipe.model, new)
            check_cost(family, partial(recipe.member_seed, name), recipe.model, new)
        except RecipeError as error:
            raise RecipeError(f"recipe {recipe.name}: members.{name}: {error}") from error
    if isinstance(recipe, Recipe):
        try:
            check_prunable(new(recipe.robust_model), image_shape, recipe.pruning)
        except RecipeError as error:
            raise RecipeError(f"recipe {recipe.name}: pruning: {error}") from error
        try:
            recipe.score_model.architecture(image_shape)
        except RecipeError as error:
            raise RecipeError(f"recipe {recipe.name}: score_model: {error}") from error
