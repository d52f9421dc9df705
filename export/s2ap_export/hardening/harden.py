"""The one-call pipeline: data to a defended model file, measured under attack before it is handed over."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from onnx import ModelProto

from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.manifest import Manifest
from s2ap_defend.model_file import write_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.purifier_record import ChoiceRecord
from s2ap_defend.verification.golden import write_with_golden
from s2ap_export.hardening.announcement import KeptParts, announce, check_replaced, check_worth, kept_parts
from s2ap_export.hardening.assembly import COMPARED, assemble, traced_networks
from s2ap_export.hardening.beforehand import check_recipe
from s2ap_export.hardening.candidate import Candidate, candidate_path
from s2ap_export.hardening.networks import networks_of
from s2ap_export.hardening.reduced import with_comparison
from s2ap_export.hardening.stage_times import stage_times
from s2ap_train.calibration import refuse
from s2ap_train.data import Splits
from s2ap_train.hardening.answered import answered_by, check_answered, few_answers
from s2ap_train.hardening.decision_choice.choice import ChosenDecision, choose_decision
from s2ap_train.hardening.feasibility import check_feasible, weaknesses
from s2ap_train.hardening.forecast import Forecast
from s2ap_train.hardening.purifier_choice import By, check_grid, choose_purifier
from s2ap_train.hardening.surrogate import blind_attacks
from s2ap_train.hardening.train import Components, train_components
from s2ap_train.hardening.unlearned import unlearned
from s2ap_train.jobs import Workers
from s2ap_train.recipe import Recipe
from s2ap_train.recipe.purifier_grid import OFF, check_banks
from s2ap_train.recipe.tables import DecisionRecipe, StagePrecision
from s2ap_train.recipe.text import RECIPE_FILE
from s2ap_train.redteam.evaluation import FOLDER, evaluate_file
from s2ap_train.redteam.plan import check_budgets, plan_of
from s2ap_train.redteam.report.badge import measurements
from s2ap_train.redteam.results import Evaluation
from s2ap_train.storage.lock import locked_folder


@dataclass(frozen=True)
class Hardened:
    """What `harden` made.

    Attributes:
        path: The model file.
        manifest: Its manifest.
        evaluation: The attacks on the file, and on the same networks with less and less defence.
    """

    path: Path
    manifest: Manifest
    evaluation: Evaluation


def look_before(
    recipe: Recipe,
    output: Path,
    work_dir: Path,
    reporter: Reporter,
    *,
    workers: Workers = None,
    choose: By | None = "recipe",
) -> tuple[Splits, Candidate, KeptParts, Forecast]:
    """All that can be known before anything is trained, and a forecast; nothing is written. Arguments as for `harden`.

    Returns:
        The data, where the file is made and how it is attacked, what the work folder holds of the parts, and how long
        the rest takes.

    Raises:
        RecipeError: If the recipe cannot work with its data or machine.
    """
    tried = check_grid(recipe)
    splits = recipe.load_data()
    check_banks(tried, splits.image_shape)
    check_feasible(recipe, splits, by_validation=choose is not None)
    for weakness in weaknesses(splits):
        reporter.line(f"note: {weakness}")
    plan = plan_of(recipe, splits.test.images[0].size)
    check_budgets(plan.eps, plan.l2, plan.pixels, splits.test.images[0, 0].size)
    check_recipe(recipe, splits.fit.images[:COMPARED], len(splits.classes), reporter)
    kept = kept_parts(recipe, splits, work_dir)
    candidate = Candidate(candidate_path(work_dir, output), plan, choose)
    expected = announce(recipe, splits, work_dir, kept, candidate, reporter, workers=workers)
    return splits, candidate, kept, expected


def harden(
    recipe: Recipe,
    output: Path,
    work_dir: Path,
    reporter: Reporter,
    *,
    workers: Workers = None,
    choose: By | None = "recipe",
    overwrite: bool = False,
    tables: Mapping[str, Any] | None = None,
    strict: bool = False,
    external_data: bool = False,
) -> Hardened:
    """Train, prune, choose the purifier, calibrate, export and measure.

    Every trained part is kept in `work_dir`; run again, finished parts are reused.

    Args:
        recipe: What to do.
        output: The model file to write; checked before anything is trained.
        work_dir: Folder of the checkpoints.
        reporter: Shows every step.
        workers: Processes that train or attack at the same time, None takes one a core; or "ray", which trains.
        choose: Who decides on the purifier: the recipe, or what the sweep finds on validation images; None: the recipe,
            without a sweep.
        overwrite: Whether finished parts of `work_dir` that were trained otherwise may be trained again.
        tables: The recipe as it was read, to be stored in the work folder.
        strict: Whether a file is refused that is worse than a simpler baseline, whose evaluation is no measure, or that
            is not what the recipe asked for; otherwise its manifest says what is weak.
        external_data: Whether weights go to a file of their own next to the output; they do above 1.9 GB.

    Raises:
        ModelFileError: If the output cannot be written.
        RecipeError: If the recipe cannot work with its data or machine, before anything is trained as far as it can be
            known, another run works in `work_dir`, or something is refused.
    """
    check_writable(output)
    check_writable(candidate_path(work_dir, output))
    asked = recipe
    splits, candidate, kept, expected = look_before(recipe, output, work_dir, reporter, workers=workers, choose=choose)
    blind = blind_attacks(recipe, splits)
    if strict and blind is not None:
        refuse(blind)
    with locked_folder(work_dir):
        if not overwrite:
            check_replaced(kept, work_dir)
        if tables is not None:
            replace_file(work_dir / RECIPE_FILE, orjson.dumps(tables, option=orjson.OPT_INDENT_2))
        trained = train_components(recipe, splits, work_dir, reporter, workers=workers, seconds=expected.by_name)
        components = trained.without_dead_channels()
        for before, after in zip(trained.members, components.members, strict=True):
            if after is not before:
                reporter.line(
                    f"dead channels: {before.method} has {after.parameters:,} of {before.parameters:,} numbers left"
                )
        weak = tuple(unlearned(recipe, [one.clean_accuracy for one in components.members], splits))
        weak = weak if blind is None else (blind, *weak)
        for weakness in weak:
            if strict:
                refuse(weakness)
            reporter.line(f"weak: {weakness.in_words}")
        named = (components.classifier(recipe.classifier), *components.members)
        answered = answered_by([one.model for one in named], splits)
        if strict:
            check_answered(recipe, splits, answered)
        for problem in few_answers(recipe, splits, answered):
            reporter.line(f"weak: {problem}")
        processes = None if workers == "ray" else workers
        purifier, choice = choose_purifier(recipe, components, splits, work_dir, reporter, by=choose, workers=processes)
        recipe = recipe.model_copy(update={"purifier": purifier})
        networks = traced_networks(recipe, components, splits)
        times = stage_times(recipe, components, networks, splits, work_dir)
        decided = choose_decision(
            recipe, components, splits, work_dir, reporter, workers=processes, strict=strict, times=times
        )
        recipe, choice = _decided(recipe, decided.decision, choice)
        with reporter.step("export", 3) as step:
            model, manifest = assemble(
                recipe,
                components,
                splits,
                work_dir,
                networks=networks,
                choice=choice,
                decision=replace(decided, weaknesses=(*weak, *decided.weaknesses)),
                on_stage=step.advance,
                strict=strict,
            )
            write_model_file(model, manifest, candidate.path)
            candidate.remember(asked)
            if recipe.export.precision.reduced:  # not where the classifier came in less than float32
                manifest = with_comparison(
                    manifest,
                    candidate.path,
                    partial(_in_float32, recipe, components, splits, work_dir, decided, strict=strict),
                    splits.validation,
                    decided.fitting,
                    work_dir,
                    eps=recipe.eps,
                    seed=recipe.seed,
                    max_flips=recipe.export.max_flips,
                )
            step.advance(f"{len(manifest.members)} members, {candidate.path.stat().st_size / 1e6:.1f} MB")
        evaluation = evaluate_file(
            candidate.path,
            splits.test.subset(slice(0, recipe.evaluation.samples)),
            candidate.plan,
            folder=work_dir / FOLDER,
            reporter=reporter,
            workers=processes,
            networks=networks_of(components),
            recipe=recipe.name,
            source=splits.name,
            command=f"harden {recipe.name}",
        )
        if strict:
            check_worth(evaluation, candidate.path)
        measured = manifest.model_copy(update={"measured": measurements(evaluation)})
        write_with_golden(model, measured, output, external_data=external_data or None)
        return Hardened(output, measured, evaluation)


def _in_float32(
    recipe: Recipe,
    components: Components,
    splits: Splits,
    work_dir: Path,
    decided: ChosenDecision,
    *,
    strict: bool,
) -> tuple[ModelProto, Manifest]:
    """What `harden` assembles of the same networks where nothing computes in less than float32."""
    export = recipe.export.model_copy(update={"precision": StagePrecision()})
    single = recipe.model_copy(update={"export": export})
    return assemble(single, components, splits, work_dir, decision=decided, strict=strict)


def _decided(
    recipe: Recipe, decision: DecisionRecipe, choice: ChoiceRecord | None
) -> tuple[Recipe, ChoiceRecord | None]:
    """The recipe with its decision, and how its purifier was chosen: one that purifies nothing has the last word.

    Args:
        recipe: Its purifier is the one that was chosen before.
        decision: The one that was chosen.
        choice: How that purifier was chosen; None: it was not measured.
    """
    recipe = recipe.model_copy(update={"decision": decision})
    if decision.purify != "off" or recipe.purifier.off:
        return recipe, choice
    if choice is not None:
        reason = (
            f"The decision, chosen afterwards, purifies nothing, so the purifier is off. Before it: {choice.reason}"
        )
        off = next(place for place, row in enumerate(choice.rows) if row.off)
        choice = choice.model_copy(update={"by": "decision", "chosen": off, "reason": reason})
    return recipe.model_copy(update={"purifier": OFF}), choice
