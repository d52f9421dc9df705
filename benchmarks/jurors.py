"""Jurors that differ: each way of making them against as many that differ in their seeds alone, at equal cost.

    python benchmarks/jurors.py [digits|fashion] [--data PATH] [--kinds seeds,eps,...] [--samples N] [--json FILE]

r, the S2AP-pruned classifier, is joined by four jurors made from the recipe's own family, each by changes of the recipe
(`jurors_kinds.py`), or plain seeds that are trained on together (`jurors_together.py`). Every jury is attacked in full
knowledge of it for a wrong label, once where it votes and once where its mean probability answers; r alone is attacked
by the same plan. Everything found is tried on all. There is no purifier, no classifier and no flag here. A juror's seed
decides first weights, mask and order of the data together: the order alone is no kind of its own. Networks and attacks
are stored in the work folder.

Written down before measuring. No kind is above plain seeds beyond noise; what makes the single juror weaker (shifts,
larger eps) costs clean accuracy; the mean probability keeps at least as many labels as the vote. Of jurors trained on
together none is above jurors that were trained as long alone; losses that push them apart cost each juror accuracy.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from jurors_kinds import JURORS, KINDS, SEEDS, juror_recipes
from jurors_networks import together, trained
from jurors_together import LONGER, TOGETHER
from report import aligned, as_text, data_overrides, machine, points
from rich.console import Console

from s2ap_defend.errors import DefendError, RecipeError
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.progress import Reporter
from s2ap_defend.types import Bool
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.calibration import Jury
from s2ap_train.compute.threads import one_thread
from s2ap_train.hardening.decision_choice.defence import Attacked, Decided, Networks, attack_decision
from s2ap_train.hardening.decision_choice.search import ATTACK_VERSION
from s2ap_train.jobs import ResumableJob, Store, Workers, run_resumable
from s2ap_train.models import Classifier, fold_batch_norm
from s2ap_train.models.cost import flops
from s2ap_train.recipe import Recipe, load_recipe
from s2ap_train.statistics.paired import paired_difference
from s2ap_train.storage.fingerprint import fingerprint, weights_digest

ALONE = "r alone"
VOTE, MEAN = "vote", "mean probability"
EVERY = (*KINDS, *TOGETHER)


@dataclass(frozen=True)
class Juries:
    """r and the jurors of one kind.

    Attributes:
        networks: r, then the jurors.
        weight: Of the vote of every juror, r's being 1.
    """

    networks: tuple[Classifier, ...]
    weight: float

    def jury(self, answer: str) -> Jury:
        """Who answers: r alone, the vote, or the mean probability, which is a mix that is all jury."""
        everyone = tuple(range(len(self.networks)))
        if answer == ALONE:
            return Jury((1.0, *(0.0 for _ in everyone[1:])), (0,), "robust")
        return Jury((1.0, *(self.weight for _ in everyone[1:])), everyone, "robust" if answer == VOTE else "mixed")

    def decided(self, recipe: Recipe, answer: str) -> Decided:
        """What is attacked: r in the classifier's place, and all as members on the image as it came; no flags."""
        first, *others = (fold_batch_norm(one).requires_grad_(False) for one in self.networks)
        networks = Networks(recipe, first, (first, *others), None, self.networks[0].image_shape)
        n = len(self.networks)
        return Decided(networks, self.jury(answer).unflagged(), np.arange(n), tuple("raw" for _ in range(n)), "off")


@click.command()
@click.argument("recipe", default="digits")
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="Where the recipe's data lies.")
@click.option("--kinds", default=",".join(EVERY), show_default=True, help="Kinds of jurors; seeds always.")
@click.option("--epochs", type=click.IntRange(1), default=2, show_default=True, help="Of training on together.")
@click.option("--samples", type=click.IntRange(10), default=200, show_default=True, help="Test images.")
@click.option("--weight", type=float, default=0.25, show_default=True, help="Of every juror's vote; r's is 1.")
@click.option("--budget", type=click.Choice(["quick", "standard"]), default="quick", show_default=True)
@click.option("--workers", type=click.IntRange(1), help="Processes; by default one a core.")
@click.option("--work-dir", type=click.Path(path_type=Path, file_okay=False), help="By default build/jurors-RECIPE.")
@click.option("--checkpoints", type=click.Path(path_type=Path, file_okay=False), help="Of a `harden`, with r.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures here.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
def main(
    recipe: str,
    data: tuple[Path, ...],
    kinds: str,
    epochs: int,
    samples: int,
    weight: float,
    budget: str,
    workers: int | None,
    work_dir: Path | None,
    checkpoints: Path | None,
    file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Train what is missing, attack every jury, print the table."""
    began, reporter = time.monotonic(), Reporter(Console())
    folder = work_dir or Path("build") / f"jurors-{Path(recipe).stem}"
    try:
        if file is not None:
            check_writable(file)
        named = [name.strip() for name in kinds.split(",")]
        if unknown := [name for name in named if name not in EVERY]:
            raise RecipeError(f"kind {unknown[0]!r} is not known; choose from {', '.join(EVERY)}")
        changes = [*data_overrides(data), *overrides]
        plain = load_recipe(recipe, changes)
        settings = {
            name: juror_recipes(recipe, changes, name) for name in dict.fromkeys((SEEDS, *named)) if name in KINDS
        }
        nets = trained(plain, settings, folder, checkpoints or folder / "r", reporter, workers)
        nets |= together(
            plain, nets[SEEDS], [one for one in named if one in TOGETHER], epochs, folder, reporter, workers
        )
        work = AdaptiveBudget.named(budget)  # type: ignore[arg-type]
        rows = measure(plain, nets, samples, weight, work, folder, reporter, workers)
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    document = {
        "command": "benchmarks/jurors.py",
        "recipe": plain.model_dump(mode="json", exclude={"data": {"root"}}),
        "split": "test",
        "samples": rows[0]["against"]["samples"] if rows else 0,
        "weight": weight,
        "epochs_together": epochs,
        "budget": budget,
        "machine": machine(),
        "seconds": time.monotonic() - began,
        "changes": {name: [list(found[1]) for found in jurors] for name, jurors in settings.items()},
        "rows": rows,
    }
    print_table(document)
    if file is not None:
        replace_file(file, as_text(document).encode())


def measure(
    recipe: Recipe,
    networks: dict[str, tuple[Classifier, ...]],
    samples: int,
    weight: float,
    budget: AdaptiveBudget,
    folder: Path,
    reporter: Reporter,
    workers: Workers,
) -> list[dict[str, Any]]:
    """Every jury under its own attack and all that was found for others, as JSON values."""
    splits = recipe.load_data()
    data = splits.test.subset(slice(0, samples))
    work = Attacked(data, recipe.eps, budget, recipe.seed)
    juries = {name: Juries(found, weight) for name, found in networks.items()}
    systems = [(SEEDS, ALONE), *((name, answer) for name in juries for answer in (VOTE, MEAN))]
    decided = {(name, answer): juries[name].decided(recipe, answer) for name, answer in systems}
    jobs = [
        ResumableJob(
            name=f"{name}, {answer}",
            function=attack_decision,
            arguments=lambda _, one=decided[name, answer]: (one, work, "wrong label"),  # type: ignore[misc]
            decides=(weights_digest(juries[name].networks), fingerprint(juries[name].jury(answer))),
        )
        for name, answer in systems
    ]
    key = (ATTACK_VERSION, splits.sha256("test"), len(data), recipe.eps, recipe.seed, budget)
    done = run_resumable(jobs, Store(folder / "found", key), reporter, title="juries under attack", workers=workers)
    tried = [data.images, *(done[job.name].images for job in jobs)]
    with reporter.step("all on all", len(systems)) as step, one_thread():
        kept: dict[tuple[str, str], list[Bool]] = {}
        for name, answer in systems:
            outcomes = (decided[name, answer](images, data.labels) for images in tried)
            kept[name, answer] = [np.asarray(one.label == data.labels) for one in outcomes]
            step.advance(f"{name}, {answer}")
    label = {system: np.all(right, axis=0) for system, right in kept.items()}
    alone = label[SEEDS, ALONE]
    costs = {name: [flops(one, splits.image_shape) for one in found] for name, found in networks.items()}
    return [
        {
            "kind": name,
            "answer": answer,
            "cost": sum(costs[name][: 1 if answer == ALONE else None]) / costs[name][0],
            "clean": float(kept[name, answer][0].mean()),
            "label_right": float(label[name, answer].mean()),
            "against": paired_difference(alone, label[name, answer]).to_json(),
            "control": control(name, networks),
            "against_control": None
            if name == SEEDS
            else paired_difference(label[control(name, networks), answer], label[name, answer]).to_json(),
        }
        for name, answer in systems
    ]


def control(kind: str, measured: Collection[str]) -> str:
    """What a kind is compared with, other than r: longer training of each, where jurors were trained on together."""
    return LONGER if kind in TOGETHER and kind != LONGER and LONGER in measured else SEEDS


def print_table(document: dict[str, Any]) -> None:
    """The figures in Markdown."""
    header = ("jurors with r", "answer", "cost of r", "clean", "label right", "- r", "control", "- control")
    rows = [
        (
            one["kind"] if one["answer"] != ALONE else "none",
            one["answer"],
            f"{one['cost']:.2f}",
            f"{100 * one['clean']:.1f}",
            f"{100 * one['label_right']:.1f}",
            points(one["against"]) if one["answer"] != ALONE else "-",
            one["control"] if one["against_control"] else "-",
            points(one["against_control"]),
        )
        for one in document["rows"]
    ]
    print(
        f"\n{document['recipe']['name']}, {document['samples']} test images, {JURORS} jurors, differences in points\n"
    )
    print("\n".join(aligned([header, ("---",) * len(header), *rows])))


if __name__ == "__main__":
    main()
