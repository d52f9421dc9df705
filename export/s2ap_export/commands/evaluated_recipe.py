"""What a model file is evaluated with: a recipe that is named, the one that made it, or what its manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.manifest import Manifest
from s2ap_export.commands.outputs import work_folder

if TYPE_CHECKING:
    from s2ap_train.data import Splits
    from s2ap_train.recipe import EvaluationRecipe, Recipe

__all__ = ["check_data", "recipe_of"]


def recipe_of(
    model: Path,
    manifest: Manifest,
    *,
    recipe: str | None = None,
    data: Path | None = None,
    overrides: tuple[str, ...] = (),
    checkpoints: Path | None = None,
) -> Recipe | EvaluationRecipe:
    """The recipe that is named; else the one in the work folder; else data and budgets of the manifest.

    The split is always the file's own, so that no image that it was trained on is a test image.

    Args:
        model: The file.
        manifest: Its manifest.
        recipe: What the user names.
        data: Where the data lie.
        overrides: Changes of the recipe's keys.
        checkpoints: The work folder of the file's hardening; None: the one that `harden` puts next to the file.

    Raises:
        RecipeError: If there is no recipe and the data are not named, or the recipe cannot work.
    """
    from s2ap_train.recipe import evaluation_recipe, load_recipe
    from s2ap_train.recipe.text import RECIPE_FILE

    stored = (work_folder(model) if checkpoints is None else checkpoints) / RECIPE_FILE
    root = () if data is None else (f'data.root="{data.resolve()}"',)
    changes = (*root, *overrides, f"seed={manifest.provenance.seed}")
    if recipe is not None or stored.is_file():
        return load_recipe(recipe or str(stored), changes)
    made, protocol = manifest.provenance, manifest.provenance.protocol
    if protocol is None:
        raise RecipeError(f"{model} does not say what it was made with; name its recipe with --recipe")
    if overrides:
        raise RecipeError(f"--set changes a recipe, and {model} has none at hand; name one with --recipe")
    if data is None and protocol.split.get("source") != "digits":
        raise RecipeError(
            f"the data {made.data!r} that {model} was made with are not known here: {stored} is not there; say where "
            "they lie with --data"
        )
    budgets = {"samples": protocol.samples, "budget": protocol.budget, "l2": protocol.l2, "pixels": protocol.pixels}
    return evaluation_recipe(
        {
            "name": made.recipe,
            "data": protocol.split if data is None else {**protocol.split, "root": data.resolve()},
            "seed": made.seed,
            "eps": protocol.eps,
            "evaluation": budgets,
        }
    )


def check_data(
    splits: Splits, recipe: Recipe | EvaluationRecipe, manifest: Manifest, model: Path, *, made_by: bool
) -> None:
    """Refuse images and labels that are not those of the model, before anything is trained or attacked.

    Args:
        splits: The data.
        recipe: What they were read by.
        manifest: Of the file.
        model: The file.
        made_by: Whether the test images must be those of the hardening.

    Raises:
        InputError: If shape or number of classes differ, or the test images are others.
    """
    for what, found, expected in (
        ("images of shape", list(splits.image_shape), list(manifest.input.shape)),
        ("a number of classes of", len(splits.classes), len(manifest.classes)),
    ):
        if found != expected:
            raise InputError(
                f"recipe {recipe.name} has {what} {found}, {model.name} takes {expected}; name the recipe that the "
                "file was made with"
            )
    protocol = manifest.provenance.protocol
    if made_by and protocol is not None and splits.sha256("test") != protocol.test_sha256:
        raise InputError(
            f"the test images of {splits.name} are not those of the hardening of {model.name}, so the file may have "
            "been trained on some; give the data as they were with --data, or name a recipe with --recipe"
        )
