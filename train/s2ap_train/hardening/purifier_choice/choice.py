"""Choosing the purifier of a recipe on validation images, for the manifest."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import ChoiceRecord, Reference
from s2ap_defend.progress import Reporter
from s2ap_train.compute import check_available
from s2ap_train.data import Splits
from s2ap_train.hardening.purifier_choice.attack import ATTACK_VERSION, Behind, attack_in_words
from s2ap_train.hardening.purifier_choice.decision import By, best_row, reason, rows_of
from s2ap_train.hardening.purifier_choice.sweep import Defence, Sweep
from s2ap_train.hardening.train import Components
from s2ap_train.jobs import Store, stored_jobs
from s2ap_train.models import fold_batch_norm
from s2ap_train.purifier import Purification
from s2ap_train.recipe import Recipe
from s2ap_train.recipe.purifier_grid import (
    OFF,
    ChoiceSettings,
    canonical,
    check_trained,
    default_values,
    grid,
    without_ascent,
)
from s2ap_train.storage.fingerprint import weights_digest
from s2ap_train.storage.parts import silent_reporter

__all__ = ["FOLDER", "check_grid", "choose", "choose_purifier", "stored_share"]

FOLDER = "purifier-choice"
"""Where, in the work folder, finished attacks are stored."""
_SPLIT = "validation"
_REFERENCE = "pruned"
"""The classifier that is attacked alone for comparison."""


def choose_purifier(
    recipe: Recipe,
    components: Components,
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
        components: The trained networks; members are all asked.
        splits: The data; validation images are attacked.
        work_dir: Finished attacks are stored in it and reused for the same networks, data and attack.
        reporter: Shows every purifier.
        by: Who decides; None: the recipe, and nothing is measured.
        workers: Processes that attack at the same time; None takes one a core, and one where there is a GPU.

    Raises:
        RecipeError: If a combination of the table is no purifier, or a process was killed.
    """
    if by is None:
        return canonical(recipe.purifier), None
    sweep, reference = _sweeps(recipe, components, splits, work_dir, reporter, workers)
    return choose(sweep, check_grid(recipe), own=recipe.purifier, by=by, reference=reference)


def stored_share(recipe: Recipe, components: Components, splits: Splits, work_dir: Path) -> float:
    """Share of the work of a choice that its folder holds, as far as it is known which purifiers Square attacks."""
    sweep, reference = _sweeps(recipe, components, splits, work_dir, silent_reporter(), 1)
    own = canonical(recipe.purifier)
    searched = dict.fromkeys((OFF, own, without_ascent(own))) if sweep.settings.square_queries else ()
    whole = stored = 0.0
    for one, tried in ((sweep, check_grid(recipe)), (reference, (OFF,))):
        jobs = one.jobs(tried, [config for config in searched if config in tried])
        done = stored_jobs(jobs, one.store)
        whole += sum(job.weight for job in jobs)
        stored += sum(job.weight for job in jobs if job.name in done)
    return stored / whole


def _sweeps(
    recipe: Recipe, components: Components, splits: Splits, work_dir: Path, reporter: Reporter, workers: int | None
) -> tuple[Sweep, Sweep]:
    """(the sweep of purifiers in front of all networks, that of the reference alone); arguments as above."""
    settings = recipe.choice or ChoiceSettings()
    data = splits.validation.subset(slice(0, settings.samples))
    device = check_available(recipe.compute)
    named = (components.classifier(_REFERENCE), components.classifier(recipe.classifier), *components.members)
    networks = [fold_batch_norm(one.model) for one in named]
    networks.append(copy.deepcopy(components.score_model))
    digest = weights_digest(networks)
    bare, classifier, *members, score_model = (one.requires_grad_(False).to(device) for one in networks)
    plural = "s" if len(members) > 1 else ""
    name = f"the {recipe.classifier} classifier and {len(members)} member{plural}, without the test"
    defence = Defence(score_model, Behind(classifier, tuple(members), name, device), data, recipe.eps, recipe.seed)
    if device != "cpu":
        workers = 1  # processes that share a GPU gain little
    key = (ATTACK_VERSION, digest, splits.sha256("validation"), len(data), recipe.eps, recipe.seed)
    folder = work_dir / FOLDER
    sweep = Sweep(defence, settings, Store(folder, key), reporter, workers)
    alone = replace(defence, behind=Behind(bare, (), f"the {_REFERENCE} classifier alone", device))
    # its few jobs wait for one another, so one worker does them all
    return sweep, Sweep(alone, settings, Store(folder, (_REFERENCE, *key)), reporter, 1, alone.behind.name)


def check_grid(recipe: Recipe) -> tuple[Purification, ...]:
    """Everything that is tried, so that what cannot work is refused before anything is trained.

    Raises:
        RecipeError: If a combination is no purifier, or asks the score model at a noise level it never saw.
    """
    score = recipe.score_model
    tables = (
        default_values(recipe.purifier, (score.sigma_min, score.sigma_max))
        if recipe.choice is None
        else recipe.choice.settings
    )
    try:
        tried = grid(recipe.purifier, tables)
        check_trained(tried, (score.sigma_min, score.sigma_max))
    except RecipeError as error:
        raise RecipeError(f"recipe {recipe.name}: {error}") from error
    return tried


def choose(
    sweep: Sweep, configs: Sequence[Purification], *, own: Purification, by: By, reference: Sweep | None = None
) -> tuple[Purification, ChoiceRecord]:
    """Run a sweep and decide; the winner's twin with rho 0 is tried, too, where the table lacks it.

    The winner, its twin and off are also attacked by Square; where the winner falls, the next one is.

    Args:
        sweep: The sweep.
        configs: What is tried; one is off, one is the recipe's.
        own: The recipe's purifier.
        by: Who decides.
        reference: What is attacked next to it without a purifier, for comparison.
    """
    configs = [canonical(config) for config in configs]
    searched: list[Purification] = []
    while True:
        rows = rows_of(sweep.run(configs, searched))
        chosen = configs.index(canonical(own)) if by == "recipe" else best_row(rows)
        needed = dict.fromkeys([next(one for one in configs if one.off), configs[chosen]])
        if configs[chosen].rho > 0:
            needed[without_ascent(configs[chosen])] = None
        untried = [one for one in needed if one not in configs]
        unsearched = [one for one in needed if one not in searched] if sweep.settings.square_queries else []
        if not untried and not unsearched:
            break
        configs += untried
        searched += unsearched
    defence = sweep.defence
    record = ChoiceRecord(
        by=by,
        chosen=chosen,
        reason=reason(rows, chosen, by, len(defence.data)),
        split=_SPLIT,
        samples=len(defence.data),
        eps=defence.eps,
        seed=defence.seed,
        attack=attack_in_words(sweep.settings),
        defended=defence.behind.name,
        reference=None if reference is None else _measured(reference),
        rows=rows,
    )
    return configs[chosen], record


def _measured(sweep: Sweep) -> Reference:
    """The networks of a sweep without a purifier, under the same attack."""
    nothing = canonical(Purification(steps=0))
    (tried,) = sweep.run([nothing], [nothing] if sweep.settings.square_queries else [])
    return Reference(
        name=sweep.defence.behind.name,
        clean_accuracy=float(tried.clean.mean()),
        adaptive_accuracy=float(tried.adaptive.mean()),
    )
