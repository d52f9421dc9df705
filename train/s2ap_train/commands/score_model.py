"""`s2ap-defend score-model`; light to import, the work is imported when it is asked for."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from s2ap_defend.commands.options import complete_recipe
from s2ap_defend.progress import Reporter

if TYPE_CHECKING:
    from s2ap_train.compute import Compute
    from s2ap_train.recipe import ScoreRecipe


_KEYS = {
    "size": "score_model.size",
    "epochs": "score_model.epochs",
    "seed": "seed",
    "data_root": "data.root",
    "accelerator": "compute.accelerator",
    "devices": "compute.devices",
    "precision": "compute.precision",
}


@click.command("score-model")
@click.argument("recipe", shell_complete=complete_recipe)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option(
    "--size", type=click.Choice(["standard", "fast", "tiny"]), help="Size of the network, instead of the recipe's."
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images, instead of the recipe's.")
@click.option("--seed", type=int, help="Seed of split and training, instead of the recipe's.")
@click.option("--data", "data_root", type=click.Path(path_type=Path), help="Where the recipe's data set lies.")
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.")
@click.option("--devices", type=click.IntRange(1), help="GPUs, or processes on a CPU, that train together.")
@click.option(
    "--precision", type=click.Choice(["auto", "32", "bf16", "16"]), help="Of the passes; weights stay 32 bit."
)
@click.option(
    "--samples", type=click.IntRange(1, 64), default=8, show_default=True, help="Images that the report shows."
)
@click.option("--overwrite", is_flag=True, help="Replace a finished model of other settings in that folder.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
def score_model(
    recipe: str,
    output: Path,
    samples: int,
    overwrite: bool,
    overrides: tuple[str, ...],
    **options: str | float | Path | None,
) -> None:
    """Train the purifier's score model of RECIPE and nothing else, and report what it can do.

    RECIPE is the name of a packaged recipe or the path of a .toml file. The folder gets the model, metrics.json and
    report.html; `s2ap-defend harden RECIPE --work-dir FOLDER` with the same settings goes on from there. Every epoch is
    kept: after an interruption the same command goes on where it stopped.
    """
    from s2ap_defend.files import check_writable
    from s2ap_train.compute import launch
    from s2ap_train.hardening.score_model import METRICS_FILE
    from s2ap_train.purifier.score_report import FILES, error_table
    from s2ap_train.recipe import load_score_recipe
    from s2ap_train.recipe.text import option_overrides

    settings = load_score_recipe(recipe, [*option_overrides(_KEYS, options), *overrides])
    output = output.resolve()
    for name in (METRICS_FILE, *FILES):
        check_writable(output / name)
    console = Console()
    metrics = launch(settings.compute, _run, settings, output, samples, overwrite)
    for line in error_table(metrics["denoising"]).lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"wrote {output}", markup=False, highlight=False, soft_wrap=True)


def _run(compute: "Compute", settings: "ScoreRecipe", output: Path, samples: int, overwrite: bool) -> Mapping[str, Any]:
    from contextlib import nullcontext

    from s2ap_defend.errors import RecipeError
    from s2ap_train.compute.threads import one_thread
    from s2ap_train.hardening.score_model import (
        report_score_model,
        score_model_parts,
    )
    from s2ap_train.storage.lock import locked_folder
    from s2ap_train.storage.parts import PartStore

    reporter = Reporter(Console() if compute.is_main else Console(file=io.StringIO()))
    with reporter.step("data", 1) as loading:
        splits = settings.load_data(lambda done, total: loading.advance(f"{done}/{total} images", done=0))
        loading.note = f"{len(splits.train)} training, {len(splits.validation)} validation"
    store = PartStore(output, reporter, writes=compute.is_main)
    parts = score_model_parts(settings, splits, compute)
    with (
        locked_folder(output) if compute.is_main else nullcontext(),
        one_thread() if settings.data.source == "digits" else nullcontext(),
    ):
        if not overwrite and (other := store.differs(parts[-1])):
            raise RecipeError(
                f"{output} holds a score model that was trained with other {other}; name another folder with -o, or "
                "give --overwrite to train it again there"
            )
        stored = store.prepare(parts)[parts[-1].name]
        if not compute.is_main:
            return {}
        return report_score_model(stored, settings, splits, output, samples=samples)
