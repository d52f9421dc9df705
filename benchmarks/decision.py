"""Who answers, what raises the flag and when images are purified: every choice attacked, next to the robust classifier.

    python benchmarks/decision.py [digits|fashion] [--data PATH] [--samples N] [--seed N] [--add FILE] [--json FILE]

Each decision is exported to a file of its own, calibrated as it would be served, and attacked by who knows all of it,
for an unflagged wrong answer and for a wrong label. r, the S2AP-pruned classifier and first juror, is attacked alone
and, for confidence, with its least confident inputs flagged, as many clean images as each file flags. All get at least
the work of the longest plan, and face what was found for any of them. Figures are of test images and paired image by
image; every seed that is named has test images of its own where there are enough, so that they can be pooled, and those
of files written before (--add) with them. Networks, choices and attacks are stored in the work folder, and a
second run goes on from there.

Written down before measuring. The jury keeps at least as many labels as r, by 0 to 3 points; mixes gain clean accuracy
where the classifier is more accurate than the jury, and lose labels with the classifier's share; the classifier behind
an alarm is far below r in labels and not above it in right or flagged. Purification costs labels or changes nothing.
Whether the members' flag beats the least confident inputs of r at the same false alarms is open.
"""

import time
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from decision_rows import ANSWERS, measured_systems
from decision_seeds import earlier_runs, over_seeds
from decision_tables import print_tables
from report import as_text, data_overrides, machine
from rich.console import Console

from s2ap_defend.decision_record import Purify
from s2ap_defend.errors import DefendError
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.progress import Reporter
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.recipe import load_recipe

POLICIES: tuple[Purify, ...] = get_args(Purify)
Name = TypeVar("Name", bound=str)


@click.command()
@click.argument("recipe", default="digits")
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="Where the recipe's data lies.")
@click.option("--samples", type=click.IntRange(10), default=120, show_default=True, help="Test images.")
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(0), help="Of split, training, attacks; several.")
@click.option("--add", "others", multiple=True, type=click.Path(path_type=Path), help="Figures of other seeds: JSON.")
@click.option("--answers", default=",".join(ANSWERS), show_default=True, help="Who answers, a file each.")
@click.option("--policies", default=",".join(POLICIES), show_default=True, help="When images are purified.")
@click.option("--mixes", default="0.6:3,0.8:3,0.9:3,1:1", show_default=True, help="SHARE:AMPLIFICATION of the jury.")
@click.option("--budget", type=click.Choice(["quick", "standard"]), default="quick", show_default=True)
@click.option("--workers", type=click.IntRange(1), help="Processes; by default one a core.")
@click.option("--work-dir", type=click.Path(path_type=Path, file_okay=False), help="By default build/decision-RECIPE.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path, file_okay=False),
    help="Work folder of a `harden` of this recipe; for one seed.",
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures here.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
def main(
    recipe: str,
    data: tuple[Path, ...],
    samples: int,
    seeds: tuple[int, ...],
    others: tuple[Path, ...],
    answers: str,
    policies: str,
    mixes: str,
    budget: str,
    workers: int | None,
    work_dir: Path | None,
    checkpoints: Path | None,
    file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Harden what is missing, attack every decision, print the tables."""
    began, reporter = time.monotonic(), Reporter(Console())
    folder = work_dir or Path("build") / f"decision-{Path(recipe).stem}"
    if checkpoints is not None and len(seeds) > 1:
        raise click.ClickException("--checkpoints holds the networks of one seed; name one --seed")
    try:
        if file is not None:
            check_writable(file)
        who, named, shares = _listed("answer", answers, ANSWERS), _listed("policy", policies, POLICIES), _mixes(mixes)
        changes = [*data_overrides(data), *overrides]
        recipes = [load_recipe(recipe, [*changes, f"seed={seed}"]) for seed in dict.fromkeys(seeds)]
        recipes = recipes or [load_recipe(recipe, changes)]
        plan = {
            "recipe": recipes[0].model_dump(mode="json", exclude={"seed": True, "data": {"root"}}),
            "budget": budget,
        }
        earlier = earlier_runs(others, plan, samples, [one.seed for one in recipes])
        found = [
            measured_systems(
                one,
                one.seed * samples if seeds else 0,
                samples,
                AdaptiveBudget.named(budget),  # type: ignore[arg-type]
                who,
                named,
                shares,
                folder / f"seed{one.seed}",
                checkpoints,
                reporter,
                workers,
            )
            for one in recipes
        ]
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    runs = sorted([*earlier, *found], key=lambda run: run["seed"])
    document: dict[str, Any] = {"command": "benchmarks/decision.py", **plan, "machine": machine()}
    document |= {"seconds": time.monotonic() - began, "runs": runs, "over_seeds": over_seeds(runs)}
    print_tables(document)
    if file is not None:
        replace_file(file, as_text(document).encode())


def _listed(what: str, text: str, known: tuple[Name, ...]) -> tuple[Name, ...]:
    named = [name.strip() for name in text.split(",")]
    if unknown := [name for name in named if name not in known]:
        raise click.ClickException(f"{what} {unknown[0]!r} is not known; choose from {', '.join(known)}")
    return tuple(one for one in known if one in named)


def _mixes(text: str) -> tuple[tuple[float, float], ...]:
    try:
        pairs = [one.split(":") for one in text.split(",") if one.strip()]
        return tuple((float(share), float(power)) for share, power in pairs)
    except ValueError as error:
        raise click.ClickException(f"--mixes {text!r} is no list of SHARE:AMPLIFICATION, such as 0.8:3,1:1") from error


if __name__ == "__main__":
    main()
