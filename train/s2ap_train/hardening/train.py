"""Training of all parts of a defence, many at a time, each part kept and reused."""

import io
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.data import Splits
from s2ap_train.hardening.parts import Network, Workshop
from s2ap_train.hardening.score_model import report_score_part
from s2ap_train.jobs import Job, Workers, check_workers, run_jobs, worker_count
from s2ap_train.purifier import UNet
from s2ap_train.recipe import EnsembleRecipe, Recipe, check_networks
from s2ap_train.storage.checkpoint import RECORD_FILE, read_folder, write_folder
from s2ap_train.storage.lock import locked_folder
from s2ap_train.storage.workbench import MissingPart, Workbench
from s2ap_train.threads import one_thread

Checkpoint = tuple[Mapping[str, bytes], Mapping[str, object]]
"""Files and record of a checkpoint folder."""
SCORE_REPORT = "score-model-report"
"""Folder, in the work folder of `harden`, of what the score model can do."""
Needs = tuple[str, ...]
"""Names of the parts that a group starts from."""


@dataclass(frozen=True)
class Parts:
    """Everything that a defended model is composed of; members of all families in the order of the recipe."""

    plain: Network
    adversarial: Network
    pruned: Network
    members: tuple[Network, ...]
    score_model: UNet

    def classifier(self, name: str) -> Network:
        """The network of that name: 'plain', 'adversarial' or 'pruned'."""
        return {"plain": self.plain, "adversarial": self.adversarial, "pruned": self.pruned}[name]


def train_parts(
    recipe: Recipe, splits: Splits, work_dir: Path, reporter: Reporter, *, workers: Workers = None
) -> Parts:
    """Train or reload every part of the recipe.

    The work folder also gets a report of the score model. The caller has locked it (`locked_folder`), and keeps it
    locked for what it does with the parts. Arguments and errors as in `train_networks`.

    Raises:
        RecipeError: If the recipe has no members.
    """
    if not any(family.count for family in recipe.members.values()):
        raise RecipeError("the recipe has no members; give members.robust.count or another family a count above 0")
    workshop = _trained(recipe, splits, work_dir, reporter, workers)
    with one_thread():
        plain = workshop.plain()
        adversarial, pruned = workshop.robust_classifiers()
        members, score_model = workshop.members(), workshop.score_model_part()
        report_score_part(score_model, recipe, splits, work_dir / SCORE_REPORT)
    networks = tuple(one for family in members.values() for one in family)
    return Parts(plain, adversarial, pruned, networks, score_model.net)


def train_networks(
    recipe: EnsembleRecipe, splits: Splits, work_dir: Path, reporter: Reporter, *, workers: Workers = None
) -> tuple[Network, dict[str, tuple[Network, ...]]]:
    """Train or reload the plain network and the members of all families, and nothing else.

    Every process trains with one thread: small networks gain nothing from more, and results do not depend on the
    number of cores. Every epoch is kept: started again, a killed run trains what is missing. On Ray each group of parts
    is a task whose checkpoints come back as bytes, so only whole parts are kept, and the nodes share no disk; each
    loads the recipe's data by itself.

    Args:
        recipe: What to train.
        splits: The data; train and validation are used.
        work_dir: Folder of the checkpoints.
        reporter: Told about every part.
        workers: Who trains at the same time; None takes one process a core.

    Raises:
        RecipeError: If a setting cannot be trained, Ray is not there, a process was killed, or another run works in
            the folder.
    """
    _check(recipe, splits, workers)
    with locked_folder(work_dir):
        workshop = _trained(recipe, splits, work_dir, reporter, workers)
        with one_thread():
            return workshop.plain(), workshop.members()


def _trained(recipe: EnsembleRecipe, splits: Splits, work_dir: Path, reporter: Reporter, workers: Workers) -> Workshop:
    """A workshop whose parts are all kept, or that trains them here as they are asked for."""
    _check(recipe, splits, workers)
    reader = Workshop(recipe, splits, Workbench(work_dir, silent_reporter(), train=False))
    missing = _missing(reader)
    if workers is None and reader.compute.device.type != "cpu":
        workers = 1  # processes that share a GPU gain little, and may not fit into its memory together
    if missing and workers == "ray":
        _train_on_ray(recipe, missing, work_dir, reporter)
    elif workers != "ray" and worker_count(workers, len(missing)) > 1:
        _train_in_processes(recipe, missing, work_dir, reporter, worker_count(workers, len(missing)))
    else:
        return Workshop(recipe, splits, Workbench(work_dir, reporter))
    return Workshop(recipe, splits, Workbench(work_dir, silent_reporter()))


def _check(recipe: EnsembleRecipe, splits: Splits, workers: Workers) -> None:
    """Refuse workers that are not there and networks that cannot be made, before anything is written."""
    check_workers(workers)
    _, channels, height, width = splits.train.images.shape
    check_networks(recipe, (channels, height, width), len(splits.classes))


def _missing(workshop: Workshop) -> dict[str, Needs]:
    """The groups with a part that is not kept, and what each starts from."""
    missing = {}
    with one_thread():
        for name, group in workshop.groups().items():
            try:
                group.work()
            except MissingPart:
                missing[name] = group.after
    return missing


def _train_in_processes(
    recipe: EnsembleRecipe, groups: Mapping[str, Needs], work_dir: Path, reporter: Reporter, processes: int
) -> None:
    """Train groups in new processes; their parts lie in the work folder when this returns."""
    jobs = [
        Job(name, _train_group, partial(tuple, (recipe, work_dir, name)), after=needs) for name, needs in groups.items()
    ]
    with reporter.step(f"training in {processes} processes", len(jobs)) as step:
        for _, text in run_jobs(jobs, processes):
            step.advance()
            reporter.line(text)


def _train_on_ray(recipe: EnsembleRecipe, groups: Mapping[str, Needs], work_dir: Path, reporter: Reporter) -> None:
    """Train groups on Ray and write the parts that come back to the work folder."""
    jobs = [
        Job(name, _train_elsewhere, partial(_sent, recipe, work_dir, name, needs), after=needs)
        for name, needs in groups.items()
    ]
    with reporter.step("training on Ray", len(jobs)) as step:
        for _, (text, checkpoints) in run_jobs(jobs, "ray"):
            _write(work_dir, checkpoints)
            step.advance()
            reporter.line(text)


def _train_group(recipe: EnsembleRecipe, work_dir: Path, name: str) -> str:
    """Train one group in this process and return what it reported; its parts are kept in the work folder."""
    text = io.StringIO()
    reporter = Reporter(Console(file=text, width=200), line_every_s=math.inf)
    workshop = Workshop(recipe, recipe.load_data(), Workbench(work_dir, reporter))
    with one_thread():
        workshop.groups()[name].work()
    return text.getvalue().rstrip()


def _sent(
    recipe: EnsembleRecipe, work_dir: Path, name: str, needs: Needs
) -> tuple[EnsembleRecipe, str, dict[str, Checkpoint]]:
    """Arguments of `_train_elsewhere`: with the checkpoints that the group starts from."""
    return recipe, name, {part: read_folder(work_dir / part) for part in needs}


def _train_elsewhere(
    recipe: EnsembleRecipe, name: str, given: Mapping[str, Checkpoint]
) -> tuple[str, dict[str, Checkpoint]]:
    """Train one group on a machine that shares no disk with ours; returns what it reported and its checkpoints."""
    with tempfile.TemporaryDirectory(prefix="s2ap-") as folder:
        work_dir = Path(folder)
        _write(work_dir, given)
        text = _train_group(recipe, work_dir, name)
        made = sorted(path.parent.name for path in work_dir.glob(f"*/{RECORD_FILE}"))
        return text, {part: read_folder(work_dir / part) for part in made if part not in given}


def _write(work_dir: Path, checkpoints: Mapping[str, Checkpoint]) -> None:
    for part, (files, record) in checkpoints.items():
        write_folder(work_dir / part, files, record)


def silent_reporter() -> Reporter:
    """Tells nobody."""
    return Reporter(Console(file=io.StringIO()))
