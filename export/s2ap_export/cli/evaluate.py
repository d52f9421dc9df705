"""`s2ap-defend evaluate`; light to import, the work is imported when it is asked for."""

import shlex
import sys
from pathlib import Path
from typing import Literal

import click
import orjson
from rich.console import Console

from s2ap_defend.errors import InputError
from s2ap_defend.model_file import check_writable, open_model_file, replace_file
from s2ap_defend.progress import Reporter
from s2ap_export.cli.options import workers_option


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--recipe", required=True, help="Packaged recipe or .toml file that names data, seed and budgets.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option(
    "--attacks",
    metavar="quick|standard|full|NAMES",
    help="A preset, or names with commas between them; by default the recipe's evaluation.budget.",
)
@click.option(
    "--budget",
    type=click.Choice(["quick", "standard", "full"]),
    help="Work of the attacker; by default that of the preset, and quick for attacks that are named.",
)
@click.option("--samples", type=click.IntRange(1), help="Test images; by default 100 for quick, 150 for standard, all.")
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
    "--ablation",
    type=click.Choice(["off", "kept", "all"]),
    help="Rows of the table of parts: none; those of the file and of checkpoints that are there (default of quick); or "
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
    help="Folder of what attacks found; by default MODEL.evaluation beside the model.",
)
@click.option("--server", metavar="URL", help="Address of a server of this very file, for attacks over HTTP.")
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
    recipe: str,
    overrides: tuple[str, ...],
    attacks: str | None,
    budget: Literal["quick", "standard", "full"] | None,
    samples: int | None,
    eps: float | None,
    l2: float | None,
    pixels: int | None,
    seed: int | None,
    workers: int | Literal["ray"] | None,
    time_limit: float | None,
    ablation: Literal["off", "kept", "all"] | None,
    checkpoints: Path | None,
    work_dir: Path | None,
    server: str | None,
    json_file: Path | None,
    report: Path | None,
    badge: Path | None,
    write_manifest: Path | None,
) -> None:
    """Attack MODEL with the test images of a recipe and print what is left of its accuracy.

    An attack succeeds when the input is answered, not flagged, and the final label is wrong. What attacks find is kept:
    after an interruption the same command goes on where it stopped.
    """
    from s2ap_export.networks import networks_beside
    from s2ap_train.lock import locked_folder
    from s2ap_train.recipe import load_recipe
    from s2ap_train.redteam.badge import badge_of, write_measured
    from s2ap_train.redteam.evaluation import evaluate_file
    from s2ap_train.redteam.page import write_page
    from s2ap_train.redteam.plan import SAMPLES, plan_of
    from s2ap_train.redteam.report import print_evaluation, to_json

    for output in (json_file, report, badge, write_manifest):
        if output is not None:
            check_writable(output)
    manifest = open_model_file(model).manifest
    # its split: no image that the file was trained on is a test image
    settings = load_recipe(recipe, (*overrides, f"seed={manifest.provenance.seed}"))
    splits = settings.load_data()
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
    )
    if samples is None:
        samples = SAMPLES.get(plan.depth) if plan.depth != "attacks" else None
    elif samples > len(splits.test):
        raise InputError(
            f"--samples {samples} is more than the {len(splits.test)} test images of recipe {settings.name}"
        )
    console = Console()
    reporter = Reporter(console)
    folder = model.with_name(f"{model.name}.evaluation") if work_dir is None else work_dir
    kept = model.with_name(f"{model.name}.training") if checkpoints is None else checkpoints
    which = ablation or {"attacks": "off", "quick": "kept"}.get(plan.depth, "all")
    with locked_folder(folder):
        networks = None
        if which != "off":
            transfer = any(attack.needs == "surrogates" for attack in plan.attacks)
            networks = networks_beside(
                model, settings, splits, kept, folder, reporter, train=which == "all", transfer=transfer
            )
        evaluation = evaluate_file(
            model,
            splits.test.subset(slice(0, samples)),
            plan,
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
    if report is not None:
        write_page(evaluation, report)
    if badge is not None:
        replace_file(badge, orjson.dumps(badge_of(evaluation), option=orjson.OPT_INDENT_2))
    if write_manifest is not None:
        write_measured(model, write_manifest, evaluation)
    for output in (json_file, report, badge, write_manifest):
        if output is not None:
            reporter.line(f"wrote {output}")
