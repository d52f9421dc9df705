"""HYDRA and HARP, each plain and with S2AP on the same dense networks: robustness, sharpness, stability, time.

    python benchmarks/s2ap.py [--recipe digits] [--bases hydra,harp] [--sparsities 0.5,0.8] [--seeds 5] [--json FILE]

A seed decides the split and trains one dense network, which all its arms prune. Both arms are fine-tuned alike, with
adversarial weight perturbation, and stand the same attack on the same test images. Of each arm, further mask searches
on the same dense network differ in their seed only and show how stable its mask is. Differences are paired by seed,
S2AP minus its base, with Student's 95 % interval. Every run is kept in the work folder: a second start repeats nothing.

Written down before measuring. Robustness: no expectation; at this scale a difference is likely to drown in the spread
over seeds. Sharpness and stability: S2AP lower, it is what S2AP optimises. Time: by passes, one forward and backward
pass next to the 10 of PGD-10 and the training step is + 9 %, next to PGD-3 + 25 %. By operations it is more: the ascent
needs gradients in weights and batch statistics, as the training step does, which an attack step on the folded network
does not; at 2 units an attack step and 3 a pass of training, + 13 % and + 33 %. Cutting the moved scores comes on top.
Goals: at most 20 % with PGD-10 and 40 % with PGD-3. Time is that of a search without warm-up epochs, which S2AP skips,
so it is the most that S2AP can cost; rounds of both arms alternate in one process, the ratio is taken in each round.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import click
from report import aligned, machine
from rich.console import Console
from s2ap_overhead import Overhead, overhead
from s2ap_runs import Arm, Job, run_all

from s2ap_defend.errors import DefendError, RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.commands.compare.groups import value_of
from s2ap_train.statistics.paired import seed_difference
from s2ap_train.storage.run_folder import read_run

MEASURES = {  # key of metrics.json, or "search." and a field of MaskDistance: title, format
    "mask_robust_accuracy": ("mask, robust accuracy %", "share"),
    "mask_clean_accuracy": ("mask, clean accuracy %", "share"),
    "robust_accuracy": ("fine-tuned, robust accuracy %", "share"),
    "clean_accuracy": ("fine-tuned, clean accuracy %", "share"),
    "sharpness": ("sharpness, real mask flips", "number"),
    "hessian_eigenvalue": ("largest eigenvalue (surrogate)", "number"),
    "flip_between_epochs": ("mask replaced between epochs %", "share"),
    "search.flip_rate": ("mask replaced between searches %", "share"),
    "sparsity": ("sparsity, of all weights %", "share"),
    "seconds_mask_search": ("mask search, seconds", "number"),
    "flip_rate": ("flipped by S2AP each step %", "share"),
    "radius": ("radius of S2AP, last epoch", "number"),
}
BESIDE = ("dense.robust_accuracy", "dense.clean_accuracy", "search.chance", "collapsed")
Figures = dict[str, list[float | None]]
"""Values of a measure, one a seed."""


def figures(jobs: list[Job]) -> dict[Arm, Figures]:
    """Values of every measure by arm, in the order of the seeds."""
    found: dict[Arm, Figures] = {}
    for job in jobs:
        run = read_run(job.folder)
        searches = json.loads(job.searches_file.read_bytes())["mean"]
        columns = found.setdefault(job.arm, {key: [] for key in (*MEASURES, *BESIDE)})
        for key, column in columns.items():
            if key == "collapsed":
                column.append(float(run.metrics["collapse"] is not None))
            elif key.startswith("dense."):
                column.append(run.metrics["before"][key.removeprefix("dense.")])
            elif key.startswith("search."):
                column.append(searches[key.removeprefix("search.")])
            else:
                column.append(value_of(run, key) if job.arm.s2ap or key != "radius" else None)
    return found


def check_alike(jobs: list[Job]) -> Mapping[str, Any]:
    """The attack that all arms of a seed stood, on the same images; its seed is the run's."""
    tested: dict[int, set[str]] = {}
    for job in jobs:
        metrics = read_run(job.folder).metrics
        stood = json.dumps([metrics["attack"], metrics["after"]["images_sha256"]], sort_keys=True)
        tested.setdefault(job.seed, set()).add(stood)
    if any(len(stood) > 1 for stood in tested.values()):
        raise RecipeError("arms of one seed stood different attacks or images; remove the work folder and start again")
    return {key: value for key, value in metrics["attack"].items() if key != "seed"}


def _cell(values: list[float | None], kind: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    factor, form = (100.0, ".1f") if kind == "share" else (1.0, ".3g")
    spread = statistics.stdev(known) if len(known) > 1 else 0.0
    return f"{factor * statistics.fmean(known):{form}} +- {factor * spread:{form}}"


def comparison(plain: Figures, s2ap: Figures) -> dict[str, Any]:
    """Paired differences of the measures that both arms have, S2AP minus its base, as JSON values."""
    differences = {}
    for key in MEASURES:
        pairs = [(a, b) for a, b in zip(plain[key], s2ap[key], strict=True) if a is not None and b is not None]
        if pairs:
            differences[key] = seed_difference([a for a, _ in pairs], [b for _, b in pairs]).to_json()
    return differences


def averaged(arms: list[Figures]) -> Figures:
    """Means over arms, seed by seed, of what all of them have."""
    columns: Figures = {}
    for key in arms[0]:
        by_seed = [[v for v in values if v is not None] for values in zip(*(arm[key] for arm in arms), strict=True)]
        columns[key] = [statistics.fmean(values) if len(values) == len(arms) else None for values in by_seed]
    return columns


def table(title: str, names: tuple[str, str], plain: Figures, s2ap: Figures) -> list[str]:
    """Lines of a table in Markdown: a measure, both arms, the difference and its interval."""
    differences = comparison(plain, s2ap)
    rows = [(title, *names, "difference", "95 % interval")]
    for key, (measure, kind) in MEASURES.items():
        factor, form = (100.0, "+z.2f") if kind == "share" else (1.0, "+z.3g")
        mean = interval = "-"
        if found := differences.get(key):
            mean = f"{factor * found['mean']:{form}}"
            interval = "-" if not found["interval"] else " to ".join(f"{factor * v:{form}}" for v in found["interval"])
        rows.append((measure, _cell(plain[key], kind), _cell(s2ap[key], kind), mean, interval))
    rows.insert(1, ("---",) * 5)
    dense = [_cell(plain[f"dense.{key}_accuracy"], "share") for key in ("robust", "clean")]
    collapsed = [sum(value or 0 for value in arm["collapsed"]) for arm in (plain, s2ap)]
    return [
        *aligned(rows),
        f"dense network: {dense[0]} robust, {dense[1]} clean; independent masks would replace "
        f"{_cell(plain['search.chance'], 'share')} %; runs that collapsed: {collapsed[0]:g} and {collapsed[1]:g}",
    ]


def time_table(times: list[Overhead]) -> list[str]:
    """Lines of a table in Markdown."""
    rows = [("method", "sparsity", "attack", "time of S2AP / base", "rounds' ratios", "base, seconds"), ("---",) * 6]
    rows += [
        (
            found.base,
            f"{found.sparsity:.0%}",
            f"PGD-{found.attack_steps}",
            f"{found.ratio:.3f}",
            f"{found.least:.2f} to {found.largest:.2f}",
            f"{found.seconds:.2f}",
        )
        for found in times
    ]
    return aligned(rows)


def _listed(kind: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    def parse(_: click.Context, parameter: click.Parameter, value: str) -> list[Any]:
        try:
            return [kind(part.strip()) for part in value.split(",")]
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is not a list like {parameter.default}") from error

    return parse


@click.command()
@click.option("--recipe", default="digits", show_default=True, help="A packaged recipe, or the path of a .toml file.")
@click.option("--bases", default="hydra,harp", show_default=True, callback=_listed(str), help="Methods of scores.")
@click.option("--sparsities", default="0.5,0.8", show_default=True, callback=_listed(float), help="Fractions removed.")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Of the split and all training.")
@click.option("--searches", default=2, show_default=True, type=click.IntRange(2), help="Mask searches of each run.")
@click.option("--attack-steps", default="10,3", show_default=True, callback=_listed(int), help="PGD steps timed.")
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(0), help="Of timing; 0 = no timing.")
@click.option("--workers", type=click.IntRange(1), help="Processes; by default one a core.")
@click.option("--work-dir", type=click.Path(path_type=Path, file_okay=False), help="By default build/s2ap-RECIPE.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures, by seed, here.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
def main(
    recipe: str,
    bases: list[str],
    sparsities: list[float],
    seeds: int,
    searches: int,
    attack_steps: list[int],
    rounds: int,
    workers: int | None,
    work_dir: Path | None,
    file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Print, for every base and sparsity, both arms and their paired difference, and what S2AP costs in time."""
    began, reporter = time.monotonic(), Reporter(Console())
    folder = work_dir or Path("build") / f"s2ap-{Path(recipe).stem}"
    try:
        arms = [Arm(*arm) for arm in product(bases, sparsities, (False, True))]
        jobs = [
            Job(arm, seed, arm.recipe(recipe, seed, overrides), searches, folder)
            for seed, arm in product(range(seeds), arms)
        ]
        run_all(jobs, workers or os.cpu_count() or 1, reporter)
        attack, found = check_alike(jobs), figures(jobs)
        times = [
            overhead(job, steps, rounds)
            for job, steps in product((job for job in jobs if job.seed == 0 and job.arm.s2ap and rounds), attack_steps)
        ]
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    print(f"\n{jobs[0].recipe.name}, {seeds} seeds, mean +- sample standard deviation, paired differences; attack:")
    print("  " + ", ".join(f"{key} {value}" for key, value in attack.items()))
    documents = []
    for base, sparsity in product(bases, sparsities):
        plain, s2ap = found[Arm(base, sparsity, False)], found[Arm(base, sparsity, True)]
        print("", *table(f"{base}, {sparsity:.0%} pruned", (base, f"{base} + S2AP"), plain, s2ap), sep="\n")
        measured = {"plain": plain, "s2ap": s2ap, "difference": comparison(plain, s2ap)}
        documents.append({"base": base, "sparsity": sparsity, **measured})
    if len(documents) > 1:
        both = (averaged([document[arm] for document in documents]) for arm in ("plain", "s2ap"))
        print("", *table("mean of these, by seed", ("base", "base + S2AP"), *both), sep="\n")
    if times:
        print("", *time_table(times), sep="\n")
    print(f"\n{time.monotonic() - began:.0f} s, less where runs were reused")
    if file is not None:
        s2ap_recipe = next(job.recipe for job in jobs if job.arm.s2ap)
        settings = s2ap_recipe.model_dump(mode="json", exclude={"seed": True, "data": {"root"}})
        document = {
            "recipe": settings,
            "seeds": list(range(seeds)),
            "searches": searches,
            "attack": attack,
            "machine": machine(),
            "results": documents,
            "overhead": [asdict(found) for found in times],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
