"""Settings of the chain against the defence's own S2AP-pruned, adversarially trained classifier, on validation images.

    python benchmarks/chain.py [digits] [--samples N] [--budget quick|standard] [--work-dir DIR] [--json FILE]

Every setting is exported to a file of its own (classifier, purifier, members before 'clean') and attacked by who knows
all of it; the pruned classifier alone is attacked as well, and each then faces what was found for all others. Figures
are paired on the same images. What was trained and found is stored in the work folder.

Written down before measuring. With the pruned network as the classifier and the purifier off, the defence cannot be
below it in robust accuracy: it answers wrongly only where that network does. Label accuracy may still fall, where a
rightly labelled image is flagged and the vote is wrong. With the plain network the members decide: robust accuracy
within noise of the pruned one's, label accuracy below it. More members before 'clean' raise robust accuracy by a few
points and cost members on clean images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from report import aligned, as_text, machine
from rich.console import Console

from s2ap_defend.errors import DefendError
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.types import Bool, Float32, Int64
from s2ap_export.hardening.assembly import assemble
from s2ap_export.hardening.networks import to_stage
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.hardening.train import train_components
from s2ap_train.jobs import Store, Workers, run_resumable
from s2ap_train.purifier.purify import Purification
from s2ap_train.recipe import Recipe, load_recipe
from s2ap_train.redteam.ablation.ablation import ablation_jobs
from s2ap_train.redteam.ablation.ablation_rows import PRUNED, Row, open_row
from s2ap_train.redteam.attacks.catalogue import chosen_attacks
from s2ap_train.redteam.campaign import Setup, attack_jobs, gathered
from s2ap_train.redteam.target import open_targets
from s2ap_train.statistics.outcome import Outcome
from s2ap_train.statistics.paired import paired_difference
from s2ap_train.storage.lock import locked_folder

ATTACKS = "pgd,agreement,evidence,bypass,correction,unrolled-pgd"
CARRIED = {"correction", "unrolled-pgd"}
"""Attacks whose images every other system faces, too: the search holds the best of all that came before it."""
CLASSIFIERS = ("plain", "pruned")
LIGHT = {"steps": 1, "step_size": 0.35}
"""Half a step of the recipe's purifier."""
_ROW = (
    "classifier",
    "purifier",
    "clean after",
    "clean",
    "asked",
    "robust",
    "label",
    "reject",
    "robust - pruned",
    "label - pruned",
)


@dataclass(frozen=True)
class Setting:
    """One chain.

    Attributes:
        classifier: 'plain' or 'pruned'.
        purifier: 'off', 'light' or 'recipe'.
        min_accept: Members that are asked before an image is called clean.
    """

    classifier: str
    purifier: str
    min_accept: int

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.classifier}-{self.purifier}-{self.min_accept}"

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe with this setting."""
        changes: dict[str, Any] = {"off": {"steps": 0}, "light": LIGHT, "recipe": {}}[self.purifier]
        purifier: Purification = replace(recipe.purifier, **changes)
        detection = replace(recipe.detection, min_accept=self.min_accept)
        return recipe.model_copy(update={"classifier": self.classifier, "purifier": purifier, "detection": detection})


@dataclass(frozen=True)
class Faced:
    """What one system does with every image that was found for any of them."""

    clean: Outcome
    robust: Bool
    label: Bool
    rejecting: Bool


@click.command()
@click.argument("recipe", default="digits")
@click.option("--samples", type=click.IntRange(10), default=120, show_default=True, help="Validation images.")
@click.option("--budget", type=click.Choice(["quick", "standard"]), default="quick", show_default=True)
@click.option("--work-dir", type=click.Path(path_type=Path, file_okay=False), default=Path("build/chain"))
@click.option("--checkpoints", type=click.Path(path_type=Path, file_okay=False), help="Of a `harden` of this recipe.")
@click.option("--workers", type=click.IntRange(1), help="Processes; by default one a core.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the figures to this file as well.")
def main(
    recipe: str,
    samples: int,
    budget: str,
    work_dir: Path,
    checkpoints: Path | None,
    workers: int | None,
    target: Path | None,
) -> None:
    """Attack every setting and compare it with the pruned classifier."""
    try:
        if target is not None:
            check_writable(target)
        measured = measure(load_recipe(recipe), samples, budget, work_dir, checkpoints, workers)
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    for line in table(measured):
        print(line)
    if target is not None:
        replace_file(target, as_text(measured).encode())


def measure(
    recipe: Recipe, samples: int, budget: str, work_dir: Path, checkpoints: Path | None, workers: Workers
) -> dict[str, Any]:
    """Figures of every setting."""
    reporter = Reporter(Console())
    splits = recipe.load_data()
    with locked_folder(checkpoints or work_dir / "parts"):
        parts = train_components(recipe, splits, checkpoints or work_dir / "parts", reporter, workers=workers)
    data = splits.validation.subset(slice(0, samples))
    members = sum(family.count for family in recipe.members.values())
    settings = [Setting(*one) for one in product(CLASSIFIERS, ("off", "light", "recipe"), sorted({4, 6, members}))]
    found: list[Float32] = []
    own: dict[str, list[Float32]] = {}
    systems = {}
    with locked_folder(work_dir):
        for setting in settings:
            path = work_dir / f"{setting.name}.onnx"
            write_model_file(*assemble(setting.of(recipe), parts, splits, work_dir), path)
            setup = Setup(
                path,
                data,
                recipe.eps,
                0.0,
                0,
                recipe.seed,
                AdaptiveBudget.named(budget),  # type: ignore[arg-type]
            )
            file = open_model_file(path).manifest
            store = Store(work_dir / "found", setup.key(file.weights_sha256, file.graph_sha256))
            attacks = chosen_attacks(ATTACKS)[1]
            done = run_resumable(attack_jobs(setup, attacks), store, reporter, title=setting.name, workers=workers)
            sides = gathered(setup, attacks, done)
            own[setting.name] = [one.images for one in sides[0].values()]
            found += [one.images for side in sides for name, one in side.items() if name in CARRIED]
            systems[setting.name] = open_targets(path)[0].system
        row = Row(PRUNED, path, to_stage(parts.pruned.model).SerializeToString())
        tasks = [setup.task(rows) for rows in setup.shards()]
        store = Store(work_dir / "found", ("pruned", hashlib.sha256(row.stage or b"").hexdigest(), setup.key("", "")))
        done = run_resumable(ablation_jobs([row], tasks, attacked={}), store, reporter, title=PRUNED, workers=workers)
        found.append(np.concatenate([done[name].images for name in sorted(done)]))
        systems[PRUNED] = open_row(row).system
        faced = {}
        with reporter.step("all on all", len(systems)) as step:
            for name, system in systems.items():
                tried = (data.images, *own.get(name, ()), *found)
                faced[name] = face([system(images, data.labels) for images in tried], data.labels)
                step.advance(name)
    alone = faced[PRUNED]
    return {
        "recipe": recipe.name,
        "samples": len(data),
        "split": "validation",
        "eps": recipe.eps,
        "seed": recipe.seed,
        "budget": budget,
        "attacks": ATTACKS,
        "machine": machine(),
        "pruned": {"clean": share(alone.clean.right(data.labels)), "robust": share(alone.robust)},
        "settings": [figures(setting, faced[setting.name], alone, data.labels) for setting in settings],
    }


def face(outcomes: list[Outcome], labels: Int64) -> Faced:
    """The worst case per image; the first outcome is that of the clean images."""
    right = [one.right(labels) for one in outcomes]
    return Faced(
        clean=outcomes[0],
        robust=~np.any([one.success for one in outcomes], axis=0),
        label=np.all(right, axis=0),
        rejecting=np.all([one & ~outcome.flagged for one, outcome in zip(right, outcomes, strict=True)], axis=0),
    )


def figures(setting: Setting, faced: Faced, alone: Faced, labels: Int64) -> dict[str, Any]:
    """One row, as JSON values."""
    return {
        "classifier": setting.classifier,
        "purifier": setting.purifier,
        "min_accept": setting.min_accept,
        "clean": share(faced.clean.right(labels)),
        "clean_flagged": share(faced.clean.flagged),
        "members_used": float(faced.clean.members_used.mean()),
        "robust": share(faced.robust),
        "label": share(faced.label),
        "rejecting": share(faced.rejecting),
        "robust_against_pruned": paired_difference(alone.robust, faced.robust).to_json(),
        "label_against_pruned": paired_difference(alone.label, faced.label).to_json(),
    }


def table(measured: dict[str, Any]) -> list[str]:
    """The figures in Markdown."""
    alone = measured["pruned"]
    rows = [_ROW, tuple("---" for _ in _ROW)]
    rows.append(
        (
            f"S2AP-pruned alone, {measured['samples']} images",
            "",
            "",
            percent(alone["clean"]),
            "",
            percent(alone["robust"]),
            percent(alone["robust"]),
            "",
            "",
            "",
        )
    )
    rows += [
        (
            one["classifier"],
            one["purifier"],
            str(one["min_accept"]),
            percent(one["clean"]),
            f"{one['members_used']:.1f}",
            percent(one["robust"]),
            percent(one["label"]),
            percent(one["rejecting"]),
            difference(one["robust_against_pruned"]),
            difference(one["label_against_pruned"]),
        )
        for one in measured["settings"]
    ]
    return aligned(rows)


def difference(effect: dict[str, Any]) -> str:
    """Points, interval and p-value."""
    low, high = (100 * end for end in effect["interval"])
    return f"{100 * effect['difference']:+.1f} ({low:+.0f} to {high:+.0f}), p {effect['p_value']:.2g}"


def percent(value: float) -> str:
    """A share."""
    return f"{value:.1%}"


def share(rows: Bool) -> float:
    """A share of images."""
    return float(np.mean(rows))


if __name__ == "__main__":
    main()
