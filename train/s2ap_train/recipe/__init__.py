"""Recipes: everything that a command does, as one TOML file."""

from s2ap_train.recipe.networks import check_networks
from s2ap_train.recipe.recipe import (
    EnsembleRecipe,
    EvaluationRecipe,
    PruningRecipe,
    Recipe,
    ScoreRecipe,
    evaluation_recipe,
    hardening_recipe,
    load_ensemble_recipe,
    load_pruning_recipe,
    load_recipe,
    load_score_recipe,
)
from s2ap_train.recipe.text import packaged_recipes

__all__ = [
    "EnsembleRecipe",
    "EvaluationRecipe",
    "PruningRecipe",
    "Recipe",
    "ScoreRecipe",
    "check_networks",
    "evaluation_recipe",
    "hardening_recipe",
    "load_ensemble_recipe",
    "load_pruning_recipe",
    "load_recipe",
    "load_score_recipe",
    "packaged_recipes",
]
