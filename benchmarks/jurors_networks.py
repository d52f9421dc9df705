"""Networks of the jurors benchmark: r, the jurors of every kind, and those that are trained on together."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jurors_kinds import juror_family, training_of
from jurors_together import trained_together

from s2ap_defend.progress import Reporter
from s2ap_train.compute.threads import one_thread
from s2ap_train.hardening.parts import PRUNED, PartList
from s2ap_train.jobs import Job, Workers, run_jobs
from s2ap_train.models import Classifier
from s2ap_train.recipe import Recipe
from s2ap_train.storage.fingerprint import fingerprint
from s2ap_train.storage.parts import PartStore, silent_reporter


def trained(
    recipe: Recipe,
    settings: dict[str, list[tuple[Recipe, list[str]]]],
    folder: Path,
    checkpoints: Path,
    reporter: Reporter,
    workers: Workers,
) -> dict[str, tuple[Classifier, ...]]:
    """By kind r and its jurors; jurors of equal settings are one network."""
    splits, family = recipe.load_data(), juror_family(recipe)
    folders = {
        (name, number): folder / "jurors" / fingerprint((one.seed, one.eps, one.members[family]))[:12]
        for name, jurors in settings.items()
        for number, (one, _) in enumerate(jurors)
    }
    wanted = {folders[name, i]: one for name, jurors in settings.items() for i, (one, _) in enumerate(jurors)}
    jobs = [Job("r", _train_r, partial(tuple, (recipe, checkpoints)))]
    jobs += [Job(str(path), _train, partial(tuple, (one, family, path))) for path, one in wanted.items()]
    with reporter.step("networks", len(jobs)) as step:
        for job, _ in run_jobs(jobs, workers):
            step.advance(Path(job.name).name)
    with one_thread():
        parts = PartList(recipe, splits).classifiers()
        r = PartStore(checkpoints, silent_reporter()).prepare([parts["adversarial"], parts[PRUNED]])[PRUNED].model
        found = {
            path: PartStore(path, silent_reporter()).prepare([part := PartList(one, splits).member(family, 0)])[
                part.name
            ]
            for path, one in wanted.items()
        }
    return {
        name: (r, *(found[folders[name, number]].model for number in range(len(jurors))))
        for name, jurors in settings.items()
    }


def together(
    recipe: Recipe,
    seeds: tuple[Classifier, ...],
    kinds: Sequence[str],
    epochs: int,
    folder: Path,
    reporter: Reporter,
    workers: Workers,
) -> dict[str, tuple[Classifier, ...]]:
    """By kind r and its jurors, which are those of the seeds trained on together."""
    r, *jurors = seeds
    config, splits = training_of(recipe, epochs), recipe.load_data()
    arguments = {name: (name, jurors, splits, config, recipe.seed, folder / "together") for name in kinds}
    with reporter.step("jurors together", len(kinds)) as step:
        for job, _ in run_jobs([Job(name, _train_on, partial(tuple, arguments[name])) for name in kinds], workers):
            step.advance(job.name)
    return {name: (r, *trained_together(*arguments[name])) for name in kinds}


def _train_on(*arguments: Any) -> None:  # noqa: ANN401 - those of `trained_together`
    """Also called in other processes."""
    with one_thread():
        trained_together(*arguments)


def _train_r(recipe: Recipe, folder: Path) -> None:
    """Also called in other processes."""
    with one_thread():
        parts = PartList(recipe, recipe.load_data()).classifiers()
        PartStore(folder, silent_reporter()).prepare([parts["adversarial"], parts[PRUNED]])


def _train(recipe: Recipe, family: str, folder: Path) -> None:
    """Also called in other processes."""
    with one_thread():
        PartStore(folder, silent_reporter()).prepare([PartList(recipe, recipe.load_data()).member(family, 0)])
