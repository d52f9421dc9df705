"""`s2ap-defend choose-purifier`; light to import, the work is imported when it is asked for."""

from pathlib import Path

import click
from rich.console import Console

from s2ap_defend.commands.options import complete_recipe
from s2ap_defend.progress import Reporter


@click.command("choose-purifier")
@click.argument("recipe", shell_complete=complete_recipe)
@click.option("--work-dir", type=click.Path(path_type=Path, file_okay=False), required=True, help="As of harden.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes at the same time, one a core by default.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Also write the table to this file.")
def choose_purifier(
    recipe: str, work_dir: Path, overrides: tuple[str, ...], workers: int | None, target: Path | None
) -> None:
    """Attack the purifiers of RECIPE's [choice] table and print which is best; nothing is exported.

    Parts and attacks that the work folder holds are reused; a larger table attacks only what is new in it:

    --set 'choice.settings=[{sigma=[0.05,0.1,0.2], rho=[0.0,0.05]}]'
    """
    from s2ap_defend.errors import RecipeError
    from s2ap_defend.files import check_writable, replace_file
    from s2ap_train.hardening import purifier_choice
    from s2ap_train.hardening.feasibility import check_feasible
    from s2ap_train.hardening.train import train_components
    from s2ap_train.recipe import load_recipe
    from s2ap_train.recipe.purifier_grid import check_banks
    from s2ap_train.storage.lock import locked_folder

    if target is not None:
        check_writable(target)
    console = Console()
    reporter = Reporter(console)
    loaded = load_recipe(recipe, overrides)
    tried = purifier_choice.check_grid(loaded)
    splits = loaded.load_data()
    check_banks(tried, splits.image_shape)
    check_feasible(loaded, splits)
    with locked_folder(work_dir):
        components = train_components(loaded, splits, work_dir, reporter, workers=workers)
        _, record = purifier_choice.choose_purifier(
            loaded, components, splits, work_dir, reporter, by="validation", workers=workers
        )
    if record is not None:
        purifier_choice.print_choice(record, console)
        if target is not None:
            try:
                replace_file(target, record.model_dump_json(indent=2).encode())
            except OSError as error:
                raise RecipeError(
                    f"{target} cannot be written ({error.strerror or error}); choose another file"
                ) from error
