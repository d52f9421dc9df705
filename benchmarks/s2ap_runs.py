"""Runs of the S2AP benchmark: arms and seeds in processes, every one kept in the work folder."""

import io
import json
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from s2ap_defend.errors import RecipeError
from s2ap_defend.files import replace_file
from s2ap_defend.progress import Reporter
from s2ap_train.commands.prune.pipeline import dense_part, run_pruning
from s2ap_train.compute import Compute, compute_here, launch
from s2ap_train.compute.threads import one_thread
from s2ap_train.jobs import Job as Task
from s2ap_train.jobs import run_jobs
from s2ap_train.measures.stability import pairwise
from s2ap_train.models import Classifier
from s2ap_train.pruning import prune
from s2ap_train.pruning.score_pruning import ScorePruning
from s2ap_train.recipe import PruningRecipe, load_pruning_recipe
from s2ap_train.storage.fingerprint import fingerprint
from s2ap_train.storage.parts import PartStore, silent_reporter
from s2ap_train.storage.run_folder import RunFolder, read_run
from s2ap_train.training import Run, TrainingData

NOT_MEASURED = ("measures.transferability=false", "measures.sensitivity=false")


@dataclass(frozen=True)
class Arm:
    """One method at one sparsity."""

    base: str
    sparsity: float
    s2ap: bool

    def __str__(self) -> str:
        return f"{self.base}{'-s2ap' if self.s2ap else ''}-{self.sparsity:g}"

    def recipe(self, name: str, seed: int, overrides: tuple[str, ...]) -> PruningRecipe:
        """The recipe with this method.

        Raises:
            RecipeError: If it trains no scores, or the two arms would not be fine-tuned alike with AWP.
        """
        method = "s2ap" if self.s2ap else self.base
        own = (f"pruning.method={method}", f"pruning.base={self.base}", f"pruning.sparsity={self.sparsity}")
        recipe = load_pruning_recipe(name, [*NOT_MEASURED, *overrides, *own, f"seed={seed}"])
        if not isinstance(recipe.pruning, ScorePruning) or not recipe.finetune.weight_radius:
            raise RecipeError(
                f"{self.base} on recipe {name}: the benchmark compares methods of scores (hydra, harp) that are "
                f"fine-tuned with finetune.weight_radius above 0, found {recipe.finetune.weight_radius:g}"
            )
        return recipe


@dataclass(frozen=True)
class Job:
    """One run: an arm and a seed, and where it is kept."""

    arm: Arm
    seed: int
    recipe: PruningRecipe
    searches: int
    work_dir: Path

    @property
    def folder(self) -> Path:
        """The run folder; runs of other settings lie next to it."""
        return self.work_dir / "runs" / f"{self.arm}-seed{self.seed}-{fingerprint(self.recipe)[:8]}"

    @property
    def searches_file(self) -> Path:
        """What further searches of the mask said."""
        return self.work_dir / "runs" / f"{self.folder.name}.searches.json"

    @property
    def shared(self) -> Path:
        """Folder of the dense network of this seed."""
        return self.work_dir / f"seed{self.seed}"

    @property
    def key(self) -> str:
        """Of everything that decides the result."""
        return fingerprint((self.recipe, self.searches))

    @property
    def finished(self) -> bool:
        """Whether the run and its searches are kept."""
        try:
            return self.folder.exists() and json.loads(self.searches_file.read_bytes())["settings"] == self.key
        except (OSError, ValueError, KeyError):
            return False


def run_job(job: Job) -> str:
    """Prune and measure one arm for one seed, and search its mask again; returns one line about it."""
    with one_thread():
        run, stability = launch(job.recipe.compute, _run, job)
    return (
        f"seed {job.seed}, {job.arm}: mask {run.metrics['mask_robust_accuracy']:.1%}, fine-tuned "
        f"{run.metrics['robust_accuracy']:.1%} robust, searches differ in {stability['flip_rate']:.1%} of the mask"
    )


def _run(compute: Compute, job: Job) -> tuple[RunFolder, dict[str, float]]:
    silent = Reporter(Console(file=io.StringIO()), line_every_s=math.inf)
    try:
        run_pruning(compute, job.recipe, job.folder, job.shared, silent)
    except RecipeError:
        if not job.folder.exists() or read_run(job.folder).metrics["collapse"] is None:
            raise
    run = read_run(job.folder)  # one that collapsed counts with its last good network; the table counts them
    return run, _search_again(compute, job, run)


def _search_again(compute: Compute, job: Job, run: RunFolder) -> dict[str, float]:
    """How far masks of searches with other seeds on the same dense network are apart, means over the pairs."""
    splits, recipe = job.recipe.load_data(), job.recipe
    data = TrainingData.of(splits).arrays
    dense, masks = compute.place(dense_network(job)), [run.masks]
    for number in range(1, job.searches):
        seed = recipe.seed + 1000 * number
        found = prune(dense, *data, recipe.pruning, run=Run(seed, compute))
        masks.append({name: mask.cpu() for name, mask in found.masks.items()})
    mean = asdict(pairwise(masks).mean)
    replace_file(job.searches_file, json.dumps({"settings": job.key, "mean": mean}).encode())
    return mean


def dense_network(job: Job) -> Classifier:
    """The network that a run of this seed trained and kept."""
    recipe = job.recipe
    part = dense_part(recipe, recipe.load_data(), compute_here(recipe.compute))
    stored = PartStore(job.shared, silent_reporter()).read(part)
    assert stored is not None  # noqa: S101  (the run has just trained it)
    return stored.model


def run_all(jobs: list[Job], workers: int, reporter: Reporter) -> None:
    """Run jobs that are not finished, `workers` at a time; first one a seed, which trains the seed's dense network."""
    missing = [job for job in jobs if not job.finished]
    if len(missing) < len(jobs):
        reporter.line(f"{len(jobs) - len(missing)} of {len(jobs)} runs reused")
    if not missing:
        return
    first = {job.seed: job for job in reversed(missing)}
    work = [
        Task(str(job.folder), run_job, partial(tuple, (job,)), after=() if job is leader else (str(leader.folder),))
        for job, leader in sorted(((job, first[job.seed]) for job in missing), key=lambda pair: pair[0] is not pair[1])
    ]
    with reporter.step(f"runs, {workers} at a time", len(work)) as step:
        for _, line in run_jobs(work, workers):
            step.advance()
            reporter.line(line)
