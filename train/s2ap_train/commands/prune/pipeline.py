"""The phases of one pruning run, each of which goes on where it was killed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter, Step
from s2ap_train.commands.prune.metrics import Timings, run_facts, run_measures
from s2ap_train.compute import Compute
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import Splits
from s2ap_train.models import Classifier
from s2ap_train.models import build as build_classifier
from s2ap_train.pruning import Tuned, finetune, prune
from s2ap_train.pruning.methods import epochs_known, needs_training, needs_tuning, structure_name
from s2ap_train.pruning.prunable import check_prunable
from s2ap_train.recipe import PruningRecipe
from s2ap_train.recipe.key import data_digest, training_key
from s2ap_train.storage.checkpoint import RECORD_FILE, check_replaceable
from s2ap_train.storage.lock import locked
from s2ap_train.storage.parts import Key, Needs, Part, PartStore, Stored, Trained
from s2ap_train.storage.run_folder import read_run, write_run
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.storage.stopwatch import Stopwatch
from s2ap_train.training import OnEpoch, Run, TrainingData, accuracies, train_classifier


def run_pruning(
    compute: Compute, recipe: PruningRecipe, output: Path, work_dir: Path, reporter: Reporter
) -> Mapping[str, Any]:
    """Train, measure, prune, fine-tune and measure again; the run folder holds the result, this returns its metrics.

    Every epoch of every phase is kept in `work_dir`: started again, a killed run loses at most the epoch it was in and
    ends with the mask of an unbroken one. The dense network stays there for other methods with the same training. A run
    folder that was made with the same recipe is not made again.

    Args:
        compute: Where; of several processes only the first one writes and reports.
        recipe: What to do.
        output: The run folder to write; checked before anything is trained.
        work_dir: Folder of what is unfinished.
        reporter: Shows every phase.

    Raises:
        RecipeError: If something in the recipe cannot work, or a phase collapsed: the folder then holds the last good
            network, and the message says so.
    """
    check_replaceable(output)
    with reporter.step("data", 1) as loading:
        splits = recipe.load_data(lambda done, total: loading.advance(f"{done}/{total} images", done=0))
        loading.note = f"{len(splits.train)} training, {len(splits.validation)} validation, {len(splits.test)} test"
    key = run_key(recipe, splits, compute)
    if (finished := _finished(output, key)) is not None:
        reporter.line(f"{output}: reused, it was made with the same recipe and data")
        return _reported(finished, output)
    run = _Run(compute, recipe, splits, work_dir, key, reporter)
    fresh = run.fresh()
    for note in (*fresh.notes, *check_prunable(fresh, splits.image_shape, recipe.pruning)):
        reporter.line(note)
    with locked(work_dir / f".run-{key.text[:12]}.lock", wait=False) if compute.is_main else nullcontext():
        return _made(run, output)


def _made(run: _Run, output: Path) -> Mapping[str, Any]:
    """Go through the phases and write the run folder: before its network is measured, and after."""
    recipe, splits = run.recipe, run.splits
    with one_thread() if recipe.data.source == "digits" else nullcontext():
        dense = run.trained() if needs_training(recipe.pruning) else None
        tuned = run.pruned(run.fresh() if dense is None else dense)
        metrics = run_facts(recipe, splits, tuned, run.timings(), collapse=run.collapse)
        run.write(output, tuned, metrics, measured=False)
        metrics |= run_measures(recipe, splits, dense, tuned, run.reporter)
    run.write(output, tuned, metrics, measured=True)
    if run.compute.is_main:
        run.snapshots.clear()
        run.stopwatch.clear()
    return _reported(metrics, output)


def _reported(metrics: Mapping[str, Any], output: Path) -> Mapping[str, Any]:
    if metrics["collapse"] is not None:
        raise RecipeError(f"collapse: {metrics['collapse']}; {output} holds the last good network before it")
    return metrics


class _Run:
    """What the phases share."""

    def __init__(
        self,
        compute: Compute,
        recipe: PruningRecipe,
        splits: Splits,
        work_dir: Path,
        key: Key,
        reporter: Reporter,
    ) -> None:
        self.compute, self.recipe, self.splits, self.reporter = compute, recipe, splits, reporter
        self.work_dir, self.key = work_dir, key
        self.snapshots = Snapshots(work_dir / f"run-{key.text[:12]}", key.text)
        self.stopwatch = Stopwatch(work_dir / f"run-{key.text[:12]}.seconds" if compute.is_main else None, key.text)
        self.data = TrainingData.of(splits)
        self.dense_seconds: float | None = None
        self.collapse: str | None = None

    def fresh(self) -> Classifier:
        """The network before any training."""
        return self.compute.place(self.data.create(self.recipe.model, self.recipe.seed))

    def trained(self) -> Classifier:
        """The dense network, adversarially trained."""
        store = PartStore(self.work_dir, self.reporter, writes=self.compute.is_main)
        part = dense_part(self.recipe, self.splits, self.compute)
        lock = locked(self.work_dir / ".dense.lock", wait=True) if self.compute.is_main else nullcontext()
        with lock:  # another run that trains the same network is waited for, and its network reused
            stored: Stored[Classifier] = store.prepare([part])[part.name]
        self.dense_seconds = stored.record["seconds"]
        self._note("training of the dense network", stored.record["collapse"])
        return self.compute.place(stored.model)

    def pruned(self, start: Classifier) -> Tuned:
        """The pruned network, fine-tuned where its method needs it."""
        recipe, watch = self.recipe, self.stopwatch
        watch.start()
        with self.reporter.step("prune", max(1, epochs_known(recipe.pruning))) as step:
            found = prune(
                start,
                *self.data.arrays,
                recipe.pruning,
                run=self._phase("prune", step),
            )
            watch.lap("prune")
        self._note("pruning", found.collapse)
        tuning = recipe.finetune if needs_tuning(recipe.pruning) else None
        with self.reporter.step("fine-tune", 1 if tuning is None else tuning.epochs) as step:
            step.note = "not needed by this method" if tuning is None else ""
            tuned = finetune(
                found,
                *self.data.arrays,
                tuning,
                structure=structure_name(recipe.pruning),
                run=self._phase("finetune", step),
            )
        self._note("fine-tuning", None if tuned.tuning is None else tuned.tuning.collapse)
        return tuned

    def write(self, output: Path, tuned: Tuned, metrics: Mapping[str, Any], *, measured: bool) -> None:
        """Write the run folder, if this is the process that does."""
        if not self.compute.is_main:
            return
        write_run(
            output,
            weights=tuned.model.state_dict(),
            masks=tuned.pruned.masks,
            scores=tuned.pruned.scores,
            config=self.recipe.model_dump(mode="json"),
            metrics=metrics,
            record={
                "architecture": _architecture(tuned.model),
                "classes": list(self.splits.classes),
                "key": asdict(self.key),
                "measured": measured,
            },
        )

    def timings(self) -> Timings:
        """Seconds of the phases."""
        seconds = self.stopwatch.seconds
        return Timings(pretrain=self.dense_seconds, search=seconds("prune"), finetune=seconds("finetune"))

    def _phase(self, name: str, step: Step) -> Run:
        """What a phase is given: it reports to the step, and its time is taken."""
        hook = self.stopwatch.timed(name, lambda _, record: step.advance(accuracies(record)))
        return Run(self.recipe.seed, self.compute, self.snapshots, hook).phase(name)

    def _note(self, phase: str, collapse: str | None) -> None:
        if collapse is not None:
            self.collapse = self.collapse or f"{phase}, {collapse}"
            self.reporter.line(f"{phase} collapsed ({collapse}); going on with the last good epoch")


def dense_part(recipe: PruningRecipe, splits: Splits, compute: Compute) -> Part[Classifier]:
    """The dense network of a recipe, as a part."""

    def train(_: Needs, hook: OnEpoch, snapshots: Snapshots) -> Trained[Classifier]:
        data = TrainingData.of(splits)
        model = compute.place(data.create(recipe.model, recipe.seed))
        run = Run(recipe.seed, compute, snapshots, hook)
        training = train_classifier(model, *data.arrays, recipe.adversarial, run=run)
        record = {
            "architecture": model.architecture(),
            "history": list(training.history),
            "collapse": training.collapse,
        }
        return Trained(model, record)

    return Part(
        name="dense",
        key=training_key(
            data_digest(splits),
            (recipe.seed, recipe.adversarial, *_what_counts(compute)),
            network=recipe.model,
        ),
        epochs=recipe.adversarial.epochs,
        train=train,
        rebuild=build_classifier,
        note=accuracies,
        summary=lambda record: accuracies(record["history"][-1]),
    )


def run_key(recipe: PruningRecipe, splits: Splits, compute: Compute) -> Key:
    """Everything that decides the run folder of a recipe; the other splits too, because it is measured on them."""
    settings = recipe.model_dump(mode="json", exclude={"data", "compute"})
    return training_key(data_digest(splits, measured=True), (settings, *_what_counts(compute)), network=recipe.model)


def _what_counts(compute: Compute) -> tuple[int, str]:
    """What of it changes results: batch normalisation sees the share of one device."""
    return compute.world_size, compute.precision


def _finished(output: Path, key: Key) -> Mapping[str, Any] | None:
    """Metrics of a run folder that was made under this key; None if there is none, or it was not measured yet.

    Raises:
        RecipeError: If something else is there, which would be lost.
    """
    if not (output / RECORD_FILE).exists():
        return None
    run = read_run(output)
    other = key.differs_in(run.record.get("key"))
    if not other:
        return run.metrics if run.measured else None
    raise RecipeError(
        f"{output} holds a run of {run.metrics['name']} with other {other}; choose another folder or remove it"
    )


def _architecture(model: nn.Module) -> dict[str, Any]:
    if not isinstance(model, Classifier):  # our own bug: networks are made by `create`
        raise TypeError(f"pruning returned a {type(model).__name__}")
    return model.architecture()
