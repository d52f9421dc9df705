"""`s2ap-defend evaluate`; light to import, the work is imported when it is asked for."""

from pathlib import Path
from typing import Literal

import click
import orjson
from rich.console import Console

from s2ap_defend.errors import InputError
from s2ap_defend.model_file import check_writable, open_model_file, replace_file
from s2ap_defend.progress import Reporter


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--recipe", required=True, help="Packaged recipe or .toml file that names data, seed and eps.")
@click.option(
    "--attacks",
    default="clean,fgsm,pgd,unrolled-pgd,square",
    show_default=True,
    help="Comma-separated attacks; clean images are always measured.",
)
@click.option("--samples", type=click.IntRange(1), help="Test images; all by default.")
@click.option("--eps", type=float, help="l_inf budget in [0, 1] pixels, instead of the recipe's.")
@click.option("--seed", type=int, help="Seed of the attacks, instead of the recipe's.")
@click.option(
    "--budget",
    type=click.Choice(["quick", "standard"]),
    default="quick",
    show_default=True,
    help="Work of the attacker.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file as well.")
def evaluate(
    model: Path,
    recipe: str,
    attacks: str,
    samples: int | None,
    eps: float | None,
    seed: int | None,
    budget: Literal["quick", "standard"],
    threads: int | None,
    json_file: Path | None,
) -> None:
    """Attack a model file with the test images of a recipe and print what is left of its accuracy.

    fgsm and pgd are made on the bare classifier (oblivious), square asks the file only (black box), unrolled-pgd knows
    everything. An attack succeeds when the input is not flagged and the final label is wrong.
    """
    from s2ap_train.evaluate import AdaptiveBudget, evaluate_file, print_report
    from s2ap_train.recipe import load_recipe

    if json_file is not None:
        check_writable(json_file)
    made_with = open_model_file(
        model
    ).manifest.provenance.seed  # its split: no image that it was trained on is a test image
    settings = load_recipe(recipe, (f"seed={made_with}",))
    names = [name.strip() for name in attacks.split(",") if name.strip()]
    data = settings.load_data().test
    if samples is not None and samples > len(data):
        raise InputError(f"--samples {samples} is more than the {len(data)} test images of recipe {settings.name}")
    console = Console()
    with Reporter(console).step("attacks", 1) as step:
        evaluation = evaluate_file(
            model,
            data.subset(slice(0, samples)),
            attacks=names,
            eps=settings.eps if eps is None else eps,
            seed=settings.seed if seed is None else seed,
            budget=AdaptiveBudget.named(budget),
            threads=threads,
            on_progress=lambda name, done, total: step.advance(f"{name} {done}/{total}", done=0),
        )
    print_report(evaluation, console)
    if json_file is not None:
        replace_file(json_file, orjson.dumps(evaluation.to_json(), option=orjson.OPT_INDENT_2))
