"""`s2ap-defend harden`; light to import, the work is imported when it is asked for."""

from pathlib import Path

import click
from rich.console import Console

from s2ap_defend.progress import Reporter


@click.command()
@click.argument("recipe")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The model file to write.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the checkpoints; by default OUTPUT.training beside the output.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option("--workers", type=click.IntRange(1), help="Processes that train at the same time; one a core by default.")
@click.option("--seed", type=int, help="Seed of split and training, instead of the recipe's.")
def harden(
    recipe: str,
    output: Path,
    work_dir: Path | None,
    overrides: tuple[str, ...],
    workers: int | None,
    seed: int | None,
) -> None:
    """Train, prune, calibrate and export RECIPE to one defended model file.

    RECIPE is the name of a packaged recipe, such as 'digits', or the path of a .toml file. Finished parts are kept in
    the work folder: after an interruption the same command goes on where it stopped.
    """
    from s2ap_export.harden import harden as run
    from s2ap_train.ladder import print_ladder
    from s2ap_train.recipe import load_recipe

    changes = overrides if seed is None else (*overrides, f"seed={seed}")
    console = Console()
    folder = output.with_name(f"{output.name}.training") if work_dir is None else work_dir
    hardened = run(load_recipe(recipe, changes), output, folder, Reporter(console), workers=workers)
    print_ladder(hardened.ladder, console)
    console.print(f"wrote {hardened.path}", markup=False, highlight=False, soft_wrap=True)
