"""A defended file next to what a user would pick instead: time and detection on the same images in one run.

    python benchmarks/peers.py build/model.onnx --work-dir build/model.onnx.training --json FILE

The work folder is that of the `harden` that made the file; what is missing for the peers, pruned members and mutants,
is trained into it. Networks of peers run in PyTorch eager, as they were published; the file, and its members asked
without a test, on ONNX Runtime. One thread, in seconds of the processor, which other processes do not lengthen much;
rounds of all systems alternate, a call takes its median over them. Serial protocols take one image after the other,
all others all images at once; the file is timed both ways.

Detection is measured under attacks on the bare classifier, which know of no defence: every system here is weaker
against an attacker who knows it. What that leaves of the file is in its manifest and printed next to; of the peers it
was not measured.

Written down before measuring: the file is at least ten times as fast as the serial protocol on clean images and keeps
more right or flagged under attack; 100 steps of diffusion cost most; the members that a test does not ask are most of
the cost of asking all.
"""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from peers_art import ArtPipeline
from peers_systems import (
    Answers,
    Defended,
    Diffusion,
    OnEngine,
    Purified,
    SerialTest,
    Smoothed,
    System,
    WholeEnsemble,
)
from peers_tables import ONE_BY_ONE, print_tables
from report import as_text, data_overrides, machine
from rich.console import Console

from s2ap_defend import DefendedClassifier
from s2ap_defend.bench.asked import SAID, Stages, cut_stages
from s2ap_defend.bench.rounds import Variant, alternate, typical_round
from s2ap_defend.errors import DefendError
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.model_file import ModelFile, open_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.stages import CLASSIFIER
from s2ap_defend.types import Bool, Float32
from s2ap_train.attacks.catalogue import ATTACKS
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet, Splits
from s2ap_train.hardening.parts import PLAIN, PartList
from s2ap_train.hardening.score_model import NAME as SCORE_MODEL
from s2ap_train.models import create, fold_batch_norm
from s2ap_train.purifier.variants import noise_and_denoise, one_step_denoise
from s2ap_train.recipe import Recipe, load_recipe
from s2ap_train.statistics.paired import mcnemar
from s2ap_train.storage.parts import PartStore

FILE = "this file, staged"
WHOLE = "this file, whole"
BARE = "bare classifier"
SERIAL = "serial test, pruned members"
MUTANTS = "serial test, mutants (MMT)"
FAMILIES = {SERIAL: "random_channel", MUTANTS: "mutation"}
STEPS, SAMPLES = 100, 100
SAME = 1e-3
"""Nats by which the same classifier's answers may differ between torch and the engine."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--recipe", default="digits", show_default=True, help="Recipe that made the file.")
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="Where the recipe's data lies.")
@click.option("--work-dir", required=True, type=click.Path(path_type=Path, file_okay=False), help="Of its harden.")
@click.option("--members", type=click.IntRange(2), default=29, show_default=True, help="Of the serial protocol.")
@click.option("--mutants", type=click.IntRange(2), default=100, show_default=True, help="Of MMT.")
@click.option("--samples", type=click.IntRange(2), default=200, show_default=True, help="Test images, for detection.")
@click.option("--images", type=click.IntRange(1), default=16, show_default=True, help="Of them, timed.")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures here.")
def main(
    model: Path,
    recipe: str,
    data: tuple[Path, ...],
    work_dir: Path,
    members: int,
    mutants: int,
    samples: int,
    images: int,
    rounds: int,
    overrides: tuple[str, ...],
    file: Path | None,
) -> None:
    """Train what is missing, print the tables."""
    began, reporter = time.monotonic(), Reporter(Console())
    counts = [f"members.random_channel.count={members}", f"members.mutation.count={mutants}"]
    try:
        if file is not None:
            check_writable(file)
        opened = open_model_file(model)
        settings = load_recipe(recipe, [*data_overrides(data), *overrides, *counts])
        splits = settings.load_data()
        with one_thread():
            found = _measured(opened, settings, splits, work_dir, samples, images, rounds, reporter)
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    document: dict[str, Any] = {
        "command": "benchmarks/peers.py",
        "machine": machine(),
        "clock": "processor",
        "file": model.name,
        "recipe": recipe,
        "rounds": rounds,
        "images": images,
        "samples": samples,
        "seconds": time.monotonic() - began,
        **found,
        "adaptive": [row.model_dump() for row in opened.manifest.measured],
    }
    print_tables(document)
    if file is not None:
        replace_file(file, as_text(document).encode())


def _measured(
    file: ModelFile,
    recipe: Recipe,
    splits: Splits,
    folder: Path,
    samples: int,
    images: int,
    rounds: int,
    reporter: Reporter,
) -> dict[str, Any]:
    stages = Stages.start(file, cut_stages(file), "cpu", 1)
    parts = _parts(recipe, splits, folder, reporter)
    systems = _systems(file, stages, recipe, splits, parts, reporter)
    bare = stages.engines[CLASSIFIER]
    test = splits.test.subset(slice(0, samples))
    network = fold_batch_norm(parts[PLAIN])
    sets = {"clean": test.images}
    for name in ("pgd", "deepfool"):
        budget = {"eps": recipe.eps} if ATTACKS[name].norm == "linf" else {}
        sets[name] = ATTACKS[name](network, test.images, test.labels, seed=recipe.seed, **budget)
    right = {name: _right(bare.run({"image": x}, SAID)[0], test.labels) for name, x in sets.items()}
    reporter.line("Asking every system about every image ...")
    answers = {name: {of: system(x) for of, x in sets.items()} for name, system in systems.items()}
    figures = {name: _figures(found, test, right) for name, found in answers.items()}
    for traffic in ("clean", "pgd"):
        part = sets[traffic][:images]
        calls: dict[str, Variant] = {name: [partial(system, part)] for name, system in systems.items()}
        with reporter.step(f"Timing {images} {traffic} images", rounds + 1) as step:
            seconds = alternate(calls, rounds, clock="processor", after_round=step.advance)
        typical = {name: typical_round(values) for name, values in seconds.items()}
        for name, figure in figures.items():
            figure["milliseconds"][traffic] = 1e3 * typical[name] / images
            figure["times_bare"][traffic] = typical[name] / typical[BARE]
            figure["times_file"][traffic] = typical[name] / typical[FILE]
    fooled = {of: right["clean"] & ~right[of] for of in ("pgd", "deepfool")}
    safe = {
        name: {of: (said.label == test.labels) | said.flagged for of, said in found.items()}
        for name, found in answers.items()
    }
    return {
        "systems": figures,
        "fooled": {of: int(rows.sum()) for of, rows in fooled.items()},
        "file_against": {
            peer: {of: _paired(safe[peer][of], safe[FILE][of], rows) for of, rows in fooled.items()}
            for peer in (SERIAL, MUTANTS)
        },
    }


def _systems(
    file: ModelFile, stages: Stages, recipe: Recipe, splits: Splits, parts: Mapping[str, Any], reporter: Reporter
) -> dict[str, System]:
    """All systems by name.

    Raises:
        click.ClickException: If the work folder's classifier is not the file's.
    """
    classifier, score = fold_batch_norm(parts[PLAIN]), parts[SCORE_MODEL]
    clean = splits.calibration.images
    _check_same(stages, classifier, clean)
    sigma = recipe.purifier.sigmas[0] if recipe.purifier.sigmas else 0.1
    systems: dict[str, System] = {
        BARE: OnEngine(stages.engines[CLASSIFIER]),
        FILE: Defended(DefendedClassifier.load(file.path, device="cpu", threads=1, executor="staged")),
        WHOLE: Defended(DefendedClassifier.load(file.path, device="cpu", threads=1, executor="whole")),
        ONE_BY_ONE: Defended(DefendedClassifier.load(file.path, device="cpu", threads=1, executor="staged"), 1),
        "all members, no test": WholeEnsemble(stages, clean),
        "bare classifier, torch": Purified(classifier, lambda images: images, 0),
    }
    for name, family in FAMILIES.items():
        members = [fold_batch_norm(model) for part, model in parts.items() if part.startswith(f"member-{family}-")]
        systems[name] = SerialTest(classifier, members, clean)
    systems["one-step denoiser"] = Purified(classifier, one_step_denoise(score, sigma).exact, 1)
    systems["noise, one-step denoiser"] = Purified(classifier, noise_and_denoise(score, sigma, 0).exact, 1)
    diffusion = Diffusion(score, start=3 * sigma, end=sigma / 10, steps=STEPS)
    systems[f"diffusion, {STEPS} steps"] = Purified(classifier, diffusion, STEPS)
    systems[f"smoothing, {SAMPLES} samples"] = Smoothed(classifier, sigma, SAMPLES)
    attacked = ATTACKS["pgd"](classifier, splits.fit.images, splits.fit.labels, seed=recipe.seed, eps=recipe.eps)
    try:
        detector = create(recipe.model, splits.image_shape, 2, recipe.seed)
        systems["ART: squeezing, detector"] = ArtPipeline(classifier, detector, splits.fit.images, attacked)
    except ImportError as error:
        reporter.line(f"ART is left out: {error}; pip install '.[crosscheck]' in a checkout brings it")
    return systems


def _parts(recipe: Recipe, splits: Splits, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """The networks of the recipe that peers need, by name of their part, trained where they are missing."""
    parts = PartList(recipe, splits)
    members = [
        parts.member(family, number) for family in FAMILIES.values() for number in range(recipe.members[family].count)
    ]
    ready = PartStore(folder, reporter).prepare([parts.plain(), *parts.score_models(), *members])
    return {name: stored.model for name, stored in ready.items()}


def _check_same(stages: Stages, classifier: Any, images: Float32) -> None:  # noqa: ANN401
    """Refuse a work folder whose classifier is not the file's.

    Raises:
        click.ClickException: If their log-probabilities differ.
    """
    with torch.no_grad():
        expected = classifier(torch.from_numpy(images)).log_softmax(dim=1).numpy()
    furthest = float(np.abs(expected - stages.engines[CLASSIFIER].run({"image": images}, SAID)[0]).max())
    if furthest > SAME:
        raise click.ClickException(
            f"the classifier of the work folder answers otherwise than the file's, by {furthest:.3g} nats; give the "
            "folder of the harden that made the file, with --work-dir"
        )


def _right(logs: np.ndarray, labels: np.ndarray) -> Bool:
    return np.asarray(logs.argmax(axis=1) == labels)


def _figures(found: Mapping[str, Answers], test: ImageSet, bare_right: Mapping[str, Bool]) -> dict[str, Any]:
    """Shares of one system: of all images, and what it flags of those that fooled the bare classifier."""
    figures: dict[str, Any] = {"milliseconds": {}, "times_bare": {}, "times_file": {}, "images": {}}
    for name, said in found.items():
        right = said.label == test.labels
        fooled = bare_right["clean"] & ~bare_right[name]
        figures["images"][name] = {
            "label_right": float(right.mean()),
            "right_or_flagged": float((right | said.flagged).mean()),
            "flagged": float(said.flagged.mean()),
            "fooled_flagged": float(said.flagged[fooled].mean()) if fooled.any() else None,
            "evaluations": said.evaluations,
        }
    return figures


def _paired(peer: Bool, file: Bool, rows: Bool) -> dict[str, Any]:
    """Of these images, those that the file has right or flags and the peer does not, the other way round, and p."""
    gained, lost = int((file & ~peer & rows).sum()), int((peer & ~file & rows).sum())
    return {"gained": gained, "lost": lost, "p_value": mcnemar(lost, gained)}


if __name__ == "__main__":
    main()
