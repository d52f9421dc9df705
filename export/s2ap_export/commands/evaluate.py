"""`s2ap-defend evaluate`; light to import, the work is imported when it is asked for."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import orjson
from rich.console import Console

from s2ap_defend.commands.options import complete_recipe, model_argument
from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.external_data import own_data
from s2ap_defend.files import replace_file
from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_export.commands.options import workers_option
from s2ap_export.commands.outputs import check_outputs, work_folder

if TYPE_CHECKING:
    from s2ap_train.redteam.plan import Plan


@click.command()
@model_argument
@click.option(
    "--recipe",
    shell_complete=complete_recipe,
    help="Packaged recipe, .toml or .json file that names data, seed and budgets; by default that of the file.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Where the data lie that the file was made with.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option(
    "--attacks",
    metavar="quick|standard|full|NAMES",
    help="A preset, or names with commas between them; by default the recipe's evaluation.budget. Your own join as "
    "package.module:function.",
)
@click.option(
    "--budget",
    type=click.Choice(["quick", "standard", "full"]),
    help="Work of the attacker; by default that of the preset, and quick for attacks that are named.",
)
@click.option("--samples", type=click.IntRange(1), help="Test images; by default 90 for quick, 150 for standard, all.")
@click.option("--first", type=click.IntRange(0), default=0, help="Number of the first of them, from 0.")
@click.option("--eps", type=float, help="l_inf budget in [0, 1] pixels, instead of the recipe's.")
@click.option("--l2", type=float, help="l2 budget in [0, 1] pixels, instead of the recipe's.")
@click.option("--pixels", type=click.IntRange(0), help="l0 budget, positions that may change, instead of the recipe's.")
@click.option("--seed", type=int, help="Seed of the attacks, instead of the recipe's.")
@click.option(
    "--workers",
    callback=workers_option,
    metavar="N|ray",
    help="Processes that attack at the same time, one a core by default; 'ray': on the cluster of RAY_ADDRESS.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    metavar="MINUTES",
    help="Begin nothing new after this time; the search over all attacks always runs. What was left out is said.",
)
@click.option(
    "--gradients",
    type=click.Choice(["float32", "bfloat16"]),
    help="What the attacks' descents compute in; by default the recipe's, float32.",
)
@click.option(
    "--ablation",
    type=click.Choice(["off", "kept", "all"]),
    help="Rows of the ablation: none; those of the file and of checkpoints that are there (default of quick); or "
    "train what is missing, the attacker's own networks included (default of standard and full).",
)
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path, file_okay=False),
    help="Work folder of the `harden` that made the file; by default MODEL.training.",
)
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of what attacks found; by default MODEL.evaluation next to the model.",
)
@click.option(
    "--server", metavar="URL", help="Address of a server of this very file; attacks over HTTP join the preset."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file as well.")
@click.option("--report", type=click.Path(path_type=Path), help="Write one HTML page with tables, plots and images.")
@click.option("--badge", type=click.Path(path_type=Path), help="Write the headline and the manifest's rows as JSON.")
@click.option(
    "--write-manifest",
    type=click.Path(path_type=Path),
    metavar="OUTPUT",
    help="Write a copy of MODEL whose manifest holds these figures.",
)
def evaluate(
    model: Path,
    recipe: str | None,
    data: Path | None,
    overrides: tuple[str, ...],
    attacks: str | None,
    budget: Literal["quick", "standard", "full"] | None,
    samples: int | None,
    first: int,
    eps: float | None,
    l2: float | None,
    pixels: int | None,
    seed: int | None,
    workers: int | Literal["ray"] | None,
    time_limit: float | None,
    gradients: Literal["float32", "bfloat16"] | None,
    ablation: Literal["off", "kept", "all"] | None,
    checkpoints: Path | None,
    work_dir: Path | None,
    server: str | None,
    json_file: Path | None,
    report: Path | None,
    badge: Path | None,
    write_manifest: Path | None,
) -> None:
    """Attack MODEL with its test images, or those of a recipe, and print what is left of its accuracy.

    Two figures, and those of simpler alternatives: the final label is right under every attack; it is right,
    or the input is flagged or not answered. What attacks find is stored: after an interruption the same command goes
    on where it stopped.
    """
    outputs = {"--json": json_file, "--report": report, "--badge": badge, "--write-manifest": write_manifest}
    check_outputs(
        {option: path for option, path in outputs.items() if path is not None},
        (model, *own_data(model), Path(recipe or "")),
    )
    _check_options(overrides, time_limit)

    from s2ap_export.commands.evaluated_recipe import check_data, recipe_of
    from s2ap_export.hardening.networks import compared_networks
    from s2ap_train.recipe import Recipe
    from s2ap_train.redteam.evaluation import evaluate_file
    from s2ap_train.redteam.plan import SAMPLES, plan_of
    from s2ap_train.redteam.report.badge import badge_of, write_measured
    from s2ap_train.redteam.report.console import print_evaluation, to_json
    from s2ap_train.redteam.report.page import write_page
    from s2ap_train.storage.lock import locked_folder

    manifest = open_model_file(model).manifest
    kept = work_folder(model) if checkpoints is None else checkpoints
    settings = recipe_of(model, manifest, recipe=recipe, data=data, overrides=overrides, checkpoints=kept)
    splits = settings.load_data()
    check_data(splits, settings, manifest, model, made_by=recipe is None)
    plan = plan_of(
        settings,
        splits.test.images[0].size,
        attacks=attacks,
        budget=budget,
        eps=eps,
        l2=l2,
        pixels=pixels,
        seed=seed,
        time_limit=time_limit,
        gradients=gradients,
        server=server is not None,
    )
    _check_plan(plan, splits.image_shape, server, write_manifest)
    if samples is None:
        samples = SAMPLES.get(plan.depth) if plan.depth != "attacks" else None
    _check_range(samples, first, len(splits.test), settings.name)
    console = Console()
    reporter = Reporter(console)
    folder = model.with_name(f"{model.name}.evaluation") if work_dir is None else work_dir
    which = ablation or {"attacks": "off", "quick": "kept"}.get(plan.depth, "all")
    with locked_folder(folder):
        networks = None
        if which != "off" and isinstance(settings, Recipe):
            transfer = any(attack.needs == "surrogates" for attack in plan.attacks)
            networks = compared_networks(
                model, settings, splits, kept, folder, reporter, train=which == "all", transfer=transfer
            )
        evaluation = evaluate_file(
            model,
            splits.test.subset(slice(first, None if samples is None else first + samples)),
            plan,
            first=first,
            folder=folder,
            reporter=reporter,
            workers=workers,
            networks=networks,
            ablation=which != "off",
            recipe=settings.name,
            source=splits.name,
            server=server,
            command=shlex.join(["s2ap-defend", *sys.argv[1:]]),
        )
    print_evaluation(evaluation, console)
    if json_file is not None:
        replace_file(json_file, orjson.dumps(to_json(evaluation), option=orjson.OPT_INDENT_2))
        reporter.line(f"wrote {json_file}")
    if report is not None:
        write_page(evaluation, report)
        reporter.line(f"wrote {report}")
    if badge is not None:
        replace_file(badge, orjson.dumps(badge_of(evaluation), option=orjson.OPT_INDENT_2))
        reporter.line(f"wrote {badge}")
    if write_manifest is not None:  # last: it refuses figures that are no measure
        write_measured(model, write_manifest, evaluation)
        reporter.line(f"wrote {write_manifest}")


def _check_options(overrides: Sequence[str], time_limit: float | None) -> None:
    """Refuse changes of the recipe that would be ignored, and a time limit that is none.

    Raises:
        RecipeError: With what to do instead.
    """
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise RecipeError(
            "--set seed=... would be ignored: test images are those of the file's own split; --seed sets "
            "the seed of the attacks"
        )
    if time_limit is not None and not math.isfinite(time_limit):
        raise RecipeError(f"--time-limit is {time_limit}; give minutes, or leave it out for no limit")


def _check_range(samples: int | None, first: int, count: int, recipe: str) -> None:
    """Refuse test images that are not there.

    Raises:
        InputError: With how many there are.
    """
    if samples is not None and samples > count:
        raise InputError(f"--samples {samples} is more than the {count} test images of recipe {recipe}")
    if first + (samples or 1) > count:
        raise InputError(
            f"--first {first} leaves {max(count - first, 0)} of the {count} test images of recipe {recipe}, fewer than "
            f"the {samples or 1} wanted; lower it, or --samples"
        )


def _check_plan(plan: Plan, shape: tuple[int, int, int], server: str | None, write_manifest: Path | None) -> None:
    """Refuse budgets that are none, a server that nothing attacks and a manifest that nothing would fill.

    Raises:
        RecipeError: With the first of these.
    """
    from s2ap_train.redteam.plan import check_budgets

    _, height, width = shape
    check_budgets(plan.eps, plan.l2, plan.pixels, height * width)
    if server is not None and not any(attack.needs == "server" for attack in plan.attacks):
        raise RecipeError(f"--server is given, but none of {plan.name} attacks a server; add square-http, or drop it")
    if write_manifest is not None and plan.depth == "attacks":
        raise RecipeError(
            f"--write-manifest needs the sanity checks of a preset, and {plan.name} names attacks; give a preset with "
            "--attacks, or leave --write-manifest out"
        )
