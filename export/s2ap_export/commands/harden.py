"""`s2ap-defend harden`; light to import, the work is imported when it is asked for."""

from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from s2ap_defend.commands.options import complete_recipe
from s2ap_defend.progress import Reporter
from s2ap_export.commands.options import workers_option


@click.command()
@click.argument("recipe", shell_complete=complete_recipe)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The model file to write.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the checkpoints; by default OUTPUT.training beside the output.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option(
    "--workers",
    callback=workers_option,
    metavar="N|ray",
    help="Processes that train at the same time, one a core by default; 'ray': on the cluster of RAY_ADDRESS, or here.",
)
@click.option(
    "--choose",
    type=click.Choice(["recipe", "validation", "unmeasured"]),
    default="recipe",
    help="Who decides on the purifier: the recipe (default), beside a table of what others leave under a white-box "
    "attack on validation images; the best of that table, off and rho 0 among them; or the recipe without a table.",
)
@click.option("--seed", type=int, help="Seed of split and training, instead of the recipe's.")
def harden(
    recipe: str,
    output: Path,
    work_dir: Path | None,
    overrides: tuple[str, ...],
    workers: int | Literal["ray"] | None,
    choose: Literal["recipe", "validation", "unmeasured"],
    seed: int | None,
) -> None:
    """Train, prune, calibrate and export RECIPE to one defended model file.

    RECIPE is the name of a packaged recipe, such as 'digits', or the path of a .toml file. Finished parts are kept in
    the work folder: after an interruption the same command goes on where it stopped.
    """
    from s2ap_defend.commands.decision_tables import print_frontier
    from s2ap_defend.sequential import asked_members
    from s2ap_export.hardening.harden import harden as run
    from s2ap_train.hardening.purifier_choice import print_choice
    from s2ap_train.jobs import check_workers
    from s2ap_train.recipe import load_recipe
    from s2ap_train.redteam.report.console import print_summary

    check_workers(workers)
    changes = overrides if seed is None else (*overrides, f"seed={seed}")
    console = Console()
    folder = output.with_name(f"{output.name}.training") if work_dir is None else work_dir
    by = None if choose == "unmeasured" else choose
    hardened = run(load_recipe(recipe, changes), output, folder, Reporter(console), workers=workers, choose=by)
    if hardened.manifest.purifier.choice is not None:
        print_choice(hardened.manifest.purifier.choice, console)
    if hardened.manifest.decision.frontier is not None:
        print_frontier(hardened.manifest.decision.frontier, console)
    print_summary(hardened.evaluation, console)
    console.print(asked_members(hardened.manifest.to_test()), highlight=False, soft_wrap=True)
    console.print(f"wrote {hardened.path}", markup=False, highlight=False, soft_wrap=True)
