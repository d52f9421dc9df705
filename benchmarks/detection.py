"""Detection and correction by every family of pruned members, the chosen mix, MMT's mutants, the paper's test and ours.

    python benchmarks/detection.py [digits|cifar10-small|cifar10-resnet18] [--data PATH] [--json FILE] [--plots FOLDER]

After Wang, Chen, Dong and Xuan, 'You can't fool all the models' (IEEE Access 2021, DOI 10.1109/ACCESS.2021.3133334),
tables 2, 4, 5 and figures 3 to 8, in our form: members on clean AND attacked inputs, detection at stated false-alarm
rates, attacks that know the members, and what a vote alone would do. There is no purifier here: the base and the
members see the attacked image itself. Everything trained and every attacked set is kept in the work folder.

Written down before measuring. Families that start from the base are fooled with it by strong attacks and more so when
the attack knows them; robust members are not, so the mix stands on them. A calibrated test of the ordered mix
detects what the paper's test detects with 100 members of one family at the same false-alarm rate, and asks at most 6
members on clean and 5 on attacked inputs; conformal false alarms are at most alpha.
"""

import time
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path

import click
from detection_measures import measure
from detection_plots import plot as draw
from detection_runs import DEFAULT, MIX, PRESETS, Benchmark
from detection_tables import print_tables
from report import as_text, data_overrides, machine
from rich.console import Console

from s2ap_defend.errors import DefendError
from s2ap_defend.files import replace_file
from s2ap_defend.progress import Reporter
from s2ap_train.attacks.catalogue import ATTACKS
from s2ap_train.recipe import load_ensemble_recipe


@click.command()
@click.argument("recipe", default="digits")
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="Where the recipe's data lies.")
@click.option("--samples", type=click.IntRange(20), help="Test images that are attacked.")
@click.option("--members", type=click.IntRange(2), help="Members of each family under our test.")
@click.option("--paper-members", type=click.IntRange(2), help="Members that the paper's test asks.")
@click.option("--attacks", default=",".join(ATTACKS), help="Named attacks, comma-separated; all by default.")
@click.option("--families", help="Families of the recipe, comma-separated; all by default.")
@click.option("--workers", type=click.IntRange(1), help="Processes; by default one a core.")
@click.option("--work-dir", type=click.Path(path_type=Path, file_okay=False), help="By default build/detection-RECIPE.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write the plots to this PNG file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
def main(
    recipe: str,
    data: tuple[Path, ...],
    samples: int | None,
    members: int | None,
    paper_members: int | None,
    attacks: str,
    families: str | None,
    workers: int | None,
    work_dir: Path | None,
    file: Path | None,
    plot: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Train what is missing, attack, calibrate every group, print the tables."""
    began, name = time.monotonic(), Path(recipe).stem
    given = {"samples": samples, "members": members, "paper_members": paper_members}
    preset = replace(PRESETS.get(name, DEFAULT), **{key: value for key, value in given.items() if value is not None})
    named = _listed(attacks, ATTACKS, "attack")
    folder = work_dir or Path("build") / f"detection-{name}"
    try:
        chosen = load_ensemble_recipe(recipe, [*data_overrides(data), *overrides])
        shown = _listed(families, chosen.members, "family") if families else list(chosen.members)
        mix = {family: chosen.members[family].count for family in shown}
        if not any(mix.values()):
            raise click.ClickException(f"the mix is empty: none of {', '.join(mix)} has a count above 0 in the recipe")
        counts = dict.fromkeys(chosen.members, 0) | {
            family: max(count, preset.paper_members if family in preset.paper_families else preset.members)
            for family, count in mix.items()
        }
        more = [f"members.{family}.count={count}" for family, count in counts.items()]
        widened = load_ensemble_recipe(recipe, [*data_overrides(data), *overrides, *more])
        bench = Benchmark(widened, mix, preset, named, folder, Reporter(Console()), workers)
        document, judged = measure(bench)
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    settings = widened.model_dump(mode="json", exclude={"data": {"root"}})
    about = {"command": "benchmarks/detection.py", "recipe": settings, "preset": asdict(preset), "mix": mix}
    document = about | {"machine": machine(), "seconds": time.monotonic() - began} | document
    print_tables(document)
    if plot is not None:
        members = bench.groups[MIX]
        example = "pgd" if "pgd" in named else named[0]
        sets = {"clean": bench.data, example: bench.attacks[example]}
        answers = {name: bench.ask(members, made) for name, made in sets.items()}
        draw(plot, bench.calibrated(MIX, members), judged[MIX], answers, example)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, as_text(document).encode())


def _listed(names: str, known: Collection[str], what: str) -> list[str]:
    """The names of a comma-separated list."""
    listed = [name.strip() for name in names.split(",")]
    if unknown := [name for name in listed if name not in known]:
        raise click.ClickException(f"{what} {unknown[0]!r} is not known; choose from {', '.join(known)}")
    return listed


if __name__ == "__main__":
    main()
