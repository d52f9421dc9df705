"""`s2ap-defend prune`; light to import, the work is imported when it is asked for."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from s2ap_defend.commands.options import complete_recipe
from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter

if TYPE_CHECKING:
    from s2ap_train.compute import Compute
    from s2ap_train.recipe import PruningRecipe

METHODS = ["s2ap", "hydra", "harp", "scratch-ticket", "magnitude", "iterative-magnitude", "twin-rep", "flying-bird"]
_KEYS = {
    "method": "pruning.method",
    "base": "pruning.base",
    "sparsity": "pruning.sparsity",
    "structure": "pruning.structure",
    "gamma": "pruning.s2ap.radius",
    "seed": "seed",
    "model": "model",
    "data_root": "data.root",
    "eps": "eps",
    "accelerator": "compute.accelerator",
    "devices": "compute.devices",
    "precision": "compute.precision",
}


@click.command()
@click.argument("recipe", shell_complete=complete_recipe)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run folder to write.")
@click.option("--method", type=click.Choice(METHODS), help="Pruning method, instead of the recipe's.")
@click.option("--base", type=click.Choice(METHODS[1:4]), help="What S2AP is put on, instead of the recipe's.")
@click.option("--sparsity", type=float, help="Fraction to remove, from 0 to below 1.")
@click.option("--structure", type=click.Choice(["unstructured", "channel", "2:4"]), help="What is removed.")
@click.option("--gamma", help='Radius of S2AP relative to the scores: a number, or "auto".')
@click.option("--seed", type=int, help="Seed of split and training, instead of the recipe's.")
@click.option("--model", help="Another network: its name, or package.module:factory of your own torch module.")
@click.option("--data", "data_root", type=click.Path(path_type=Path), help="Where the recipe's data set lies.")
@click.option("--eps", type=float, help="l_inf budget of what is measured, in [0, 1] pixels; training keeps its own.")
@click.option("--natural", is_flag=True, help="Train without attacks; what is pruned then has no robustness to keep.")
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.")
@click.option("--devices", type=click.IntRange(1), help="GPUs, or processes on a CPU, that train together.")
@click.option(
    "--precision", type=click.Choice(["auto", "32", "bf16", "16"]), help="Of the passes; weights stay 32 bit."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of what is unfinished and of the dense network; by default OUTPUT.work next to the output. Runs that "
    "differ only in pruning may share one, one after another.",
)
def prune(
    recipe: str,
    output: Path,
    overrides: tuple[str, ...],
    work_dir: Path | None,
    natural: bool,
    **options: str | float | Path | None,
) -> None:
    """Train, prune, fine-tune and measure the robust classifier of RECIPE, into one run folder.

    RECIPE is the name of a packaged recipe or the path of a .toml file. Every epoch is kept: after an interruption the
    same command goes on where it stopped. Compare several run folders with `s2ap-defend compare`.
    """
    from s2ap_train.commands.prune.summary import print_summary
    from s2ap_train.compute import launch
    from s2ap_train.recipe import load_pruning_recipe
    from s2ap_train.recipe.text import option_overrides

    numbers = () if options["gamma"] == "auto" else ("gamma",)
    settings = load_pruning_recipe(recipe, [*option_overrides(_KEYS, options, numbers=numbers), *overrides])
    for option in ("base", "gamma"):
        if options[option] is not None and getattr(settings.pruning, "s2ap", None) is None:
            raise RecipeError(f"--{option} is for S2AP, the method is {settings.pruning.method}; add --method s2ap")
    console = Console()
    if natural:
        settings = _natural(settings)
        _warn(console, "training without attacks: expect next to no robust accuracy, before pruning and after")
    elif unattacked := _unattacked(settings):
        raise RecipeError(f"{unattacked} trains without attacks; say --natural if that is what you want")
    output = output.resolve()
    folder = output.with_name(f"{output.name}.work") if work_dir is None else work_dir
    metrics = launch(settings.compute, _run, settings, output, folder)
    print_summary(metrics, console)
    console.print(f"wrote {output}", markup=False, highlight=False, soft_wrap=True)


def _run(compute: "Compute", settings: "PruningRecipe", output: Path, work_dir: Path) -> Mapping[str, Any]:
    from s2ap_train.commands.prune.pipeline import run_pruning

    console = Console() if compute.is_main else Console(file=io.StringIO())
    return run_pruning(compute, settings, output, work_dir, Reporter(console))


def _unattacked(settings: "PruningRecipe") -> str | None:
    """The first training of a recipe that sees no attacks."""
    trainings = {"adversarial": settings.adversarial, "finetune": settings.finetune}
    trainings["pruning.training"] = getattr(settings.pruning, "training", settings.adversarial)
    return next((name for name, training in trainings.items() if not training.adversarial), None)


def _natural(settings: "PruningRecipe") -> "PruningRecipe":
    """The same recipe with every training on clean images."""
    from dataclasses import replace

    from s2ap_train.pruning.methods import training_of, with_training
    from s2ap_train.training import TrainingConfig

    def clean(config: TrainingConfig) -> TrainingConfig:
        return replace(config, loss="natural", eps=0.0, beta=None)

    own = training_of(settings.pruning)
    pruning = settings.pruning if own is None else with_training(settings.pruning, clean(own))
    trained = {"adversarial": clean(settings.adversarial), "finetune": clean(settings.finetune)}
    return settings.model_copy(update={**trained, "pruning": pruning})


def _warn(console: Console, text: str) -> None:
    console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)
