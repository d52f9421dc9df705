"""Choosing the purifier of a recipe on validation images, for the manifest."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import ChoiceRecord
from s2ap_defend.progress import Reporter
from s2ap_train.compute import check_available
from s2ap_train.data import Splits
from s2ap_train.models import fold_batch_norm
from s2ap_train.parts import Parts
from s2ap_train.purifier import Purification
from s2ap_train.purifier_choice.attack import Behind, attack_in_words
from s2ap_train.purifier_choice.decision import By, best_row, reason, rows_of, twin_of
from s2ap_train.purifier_choice.kept import KeptAttacks, weights_digest
from s2ap_train.purifier_choice.sweep import Defence, Sweep
from s2ap_train.purifier_grid import ChoiceSettings, canonical, default_values, grid, without_ascent
from s2ap_train.recipe import Recipe

__all__ = ["FOLDER", "check_grid", "choose", "choose_purifier"]

FOLDER = "purifier-choice"
"""Where, in the work folder, finished attacks are kept."""
_SPLIT = "validation"


def choose_purifier(
    recipe: Recipe,
    parts: Parts,
    splits: Splits,
    work_dir: Path,
    reporter: Reporter,
    *,
    by: By | None = "recipe",
    workers: int | None = None,
) -> tuple[Purification, ChoiceRecord | None]:
    """The purifier to export, and the table that goes with it.

    Chosen by the recipe, its own purifier is exported whatever the table says; chosen by validation, the row with the
    highest adaptive accuracy is, off and rho 0 among them.

    Args:
        recipe: Its `choice` table says what is tried; without one, a small grid around its purifier.
        parts: The trained networks; members are all asked.
        splits: The data; validation images are attacked.
        work_dir: Finished attacks are kept in it and reused for the same networks, data and attack.
        reporter: Told about every purifier.
        by: Who decides; None: the recipe, and nothing is measured.
        workers: Processes that attack at the same time; None takes one a core, and one where there is a GPU.

    Raises:
        RecipeError: If a combination of the table is no purifier, or a process was killed.
    """
    if by is None:
        return canonical(recipe.purifier), None
    settings = recipe.choice or ChoiceSettings()
    data = splits.validation.subset(slice(0, settings.samples))
    device = check_available(recipe.compute)
    networks = [fold_batch_norm(one.model) for one in (parts.classifier(recipe.classifier), *parts.members)]
    networks.append(copy.deepcopy(parts.score_model))
    digest = weights_digest(networks)
    classifier, *members, score_model = (one.requires_grad_(False).to(device) for one in networks)
    plural = "s" if len(members) > 1 else ""
    name = f"the {recipe.classifier} classifier and {len(members)} member{plural}, without the test"
    defence = Defence(score_model, Behind(classifier, tuple(members), name, device), data, recipe.eps, recipe.seed)
    if device != "cpu":
        workers = 1  # processes that share a GPU gain little
    key = (digest, splits.sha256(), len(data), recipe.eps, recipe.seed)
    sweep = Sweep(defence, settings, KeptAttacks(work_dir / FOLDER, key), reporter, workers)
    return choose(sweep, check_grid(recipe), own=recipe.purifier, by=by)


def check_grid(recipe: Recipe) -> tuple[Purification, ...]:
    """Everything that is tried, so that what cannot work is told before anything is trained.

    Raises:
        RecipeError: If a combination is no purifier.
    """
    score = recipe.score_model
    tables = (
        default_values(recipe.purifier, (score.sigma_min, score.sigma_max))
        if recipe.choice is None
        else recipe.choice.settings
    )
    try:
        return grid(recipe.purifier, tables)
    except RecipeError as error:
        raise RecipeError(f"recipe {recipe.name}: {error}") from error


def choose(
    sweep: Sweep, configs: Sequence[Purification], *, own: Purification, by: By
) -> tuple[Purification, ChoiceRecord]:
    """Run a sweep and decide; the winner's twin with rho 0 is tried, too, where the table lacks it.

    Args:
        sweep: The sweep.
        configs: What is tried; one is off, one is the recipe's.
        own: The recipe's purifier.
        by: Who decides.
    """
    configs = list(configs)
    while True:
        rows = rows_of(sweep.run(configs))
        chosen = configs.index(canonical(own)) if by == "recipe" else best_row(rows)
        if rows[chosen].off or rows[chosen].rho == 0 or twin_of(rows, rows[chosen]) is not None:
            break
        configs.append(without_ascent(configs[chosen]))
    defence = sweep.defence
    record = ChoiceRecord(
        by=by,
        chosen=chosen,
        reason=reason(rows, chosen, by),
        split=_SPLIT,
        samples=len(defence.data),
        eps=defence.eps,
        seed=defence.seed,
        attack=attack_in_words(sweep.settings),
        defended=defence.behind.name,
        rows=rows,
    )
    return configs[chosen], record
