"""Trains the parts of a recipe, many at a time."""

import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from rich.console import Console

from s2ap_defend.decision_record import Role
from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.compute import check_available
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import Splits
from s2ap_train.hardening.network import Network, known_network, lean
from s2ap_train.hardening.part_names import ADVERSARIAL, JURY, PLAIN, PRUNED, jurors_of, member_name
from s2ap_train.hardening.parts import PartList
from s2ap_train.hardening.score_model import NAME as SCORE_MODEL
from s2ap_train.hardening.score_model import report_score_model
from s2ap_train.jobs import Job, Workers, check_workers, run_jobs, worker_count
from s2ap_train.purifier import UNet
from s2ap_train.recipe import EnsembleRecipe, Recipe, check_networks
from s2ap_train.storage.checkpoint import read_folder, write_folder
from s2ap_train.storage.lock import locked_folder
from s2ap_train.storage.parts import Key, Part, PartStore, Stored, silent_reporter

Checkpoint = tuple[Mapping[str, bytes], Mapping[str, object]]
"""Files and record of a checkpoint folder."""
SCORE_REPORT = "score-model-report"
"""Folder, in the work folder of `harden`, of what the score model can do."""


@dataclass(frozen=True)
class Components:
    """Everything that a defended model is composed of.

    Attributes:
        plain: The naturally trained classifier.
        adversarial: The adversarially trained one.
        pruned: The pruned one that came from it.
        members: The pruned classifier, then the members of all families in the order of the recipe.
        roles: Of each member.
        score_model: Of the purifier.
    """

    plain: Network
    adversarial: Network
    pruned: Network
    members: tuple[Network, ...]
    roles: tuple[Role, ...]
    score_model: UNet

    def classifier(self, name: str) -> Network:
        """The network of that name: 'plain', 'adversarial' or 'pruned'."""
        return {PLAIN: self.plain, ADVERSARIAL: self.adversarial, PRUNED: self.pruned}[name]

    def without_dead_channels(self) -> "Components":
        """The same where the pruned classifier and the members have no channels that their masks left dead."""
        return replace(self, pruned=lean(self.pruned), members=tuple(map(lean, self.members)))


def train_components(
    recipe: Recipe,
    splits: Splits,
    work_dir: Path,
    reporter: Reporter,
    *,
    workers: Workers = None,
    seconds: Mapping[str, float] = MappingProxyType({}),
) -> Components:
    """Train or reload everything that a defended model is composed of.

    The work folder also gets a report of the score model. The caller has locked it (`locked_folder`), and keeps it
    locked for what it does with the networks.

    Args:
        recipe: What to train.
        splits: The data; train and validation are used.
        work_dir: Folder of the checkpoints.
        reporter: Shows every part.
        workers: Who trains at the same time; None takes one process a core.
        seconds: What the parts are expected to take, against one another, for the time left; by name.

    Raises:
        RecipeError: If the recipe has no members, a setting cannot be trained, Ray is not there, or a process was
            killed.
    """
    if not any(family.count for family in recipe.members.values()):
        raise RecipeError("the recipe has no members; give members.robust.count or another family a count above 0")
    _check(recipe, splits, workers)
    ready = _trained(recipe, splits, work_dir, reporter, workers, seconds)
    with one_thread():
        report_score_model(ready[SCORE_MODEL], recipe, splits, work_dir / SCORE_REPORT)
    return _components(recipe, ready)


def stored_components(recipe: Recipe, splits: Splits, work_dir: Path) -> Components | None:
    """Everything that a defended model is composed of, as far as it lies in the work folder; None: not all does."""
    store = PartStore(work_dir, silent_reporter())
    with one_thread():
        read = {part.name: store.read(part) for part in PartList(recipe, splits).all()}
    ready = {name: stored for name, stored in read.items() if stored is not None}
    return _components(recipe, ready) if len(ready) == len(read) else None


def _components(recipe: Recipe, ready: Mapping[str, Stored[Any]]) -> Components:
    plain, adversarial, pruned = (_network(ready[name]) for name in (PLAIN, ADVERSARIAL, PRUNED))
    families = _members(recipe, _with_jury(recipe, ready))
    roles = [recipe.members[name].role for name, family in families.items() for _ in family]
    return Components(
        plain,
        adversarial,
        pruned,
        (pruned, *(one for family in families.values() for one in family)),
        ("juror", *roles),
        ready[SCORE_MODEL].model,
    )


def _with_jury(recipe: Recipe, ready: Mapping[str, Stored[Any]]) -> Mapping[str, Stored[Any]]:
    """The parts with those jurors that were trained on together in the place of the jurors that they were."""
    if JURY not in ready:
        return ready
    jury = ready[JURY]
    together = zip(jurors_of(recipe), jury.model, jury.record["members"], strict=True)
    return {**ready, **{member_name(*one): Stored(model, record) for one, model, record in together}}


def train_networks(
    recipe: EnsembleRecipe, splits: Splits, work_dir: Path, reporter: Reporter, *, workers: Workers = None
) -> tuple[Network, dict[str, tuple[Network, ...]]]:
    """Train or reload the plain network and the members of all families, and nothing else.

    Every process trains with one thread: small networks gain nothing from more, and results do not depend on the
    number of cores. Every epoch is stored: started again, a killed run trains what is missing. On Ray each part
    is a task whose checkpoint comes back as bytes, so only whole parts are stored, and the nodes share no disk; each
    loads the recipe's data by itself.

    Args:
        recipe: What to train.
        splits: The data; train and validation are used.
        work_dir: Folder of the checkpoints.
        reporter: Shows every part.
        workers: Who trains at the same time; None takes one process a core.

    Raises:
        RecipeError: If a setting cannot be trained, Ray is not there, a process was killed, or another run works in
            the folder.
    """
    _check(recipe, splits, workers)
    with locked_folder(work_dir):
        ready = _trained(recipe, splits, work_dir, reporter, workers)
    return _network(ready[PLAIN]), _members(recipe, ready)


def _network(stored: Stored[Any]) -> Network:
    return known_network(stored.model, stored.record)


def _members(recipe: EnsembleRecipe, ready: Mapping[str, Stored[Any]]) -> dict[str, tuple[Network, ...]]:
    """All members by family, in the order of the recipe."""
    return {
        name: tuple(_network(ready[member_name(name, number)]) for number in range(family.count))
        for name, family in recipe.members.items()
    }


def _trained(
    recipe: EnsembleRecipe,
    splits: Splits,
    work_dir: Path,
    reporter: Reporter,
    workers: Workers,
    seconds: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Stored[Any]]:
    """Every part of the recipe, read from the work folder as far as it is there under its key, else trained."""
    parts, store = PartList(recipe, splits).all(), PartStore(work_dir, reporter)
    with one_thread():
        ready = {part.name: stored for part in parts if (stored := store.read(part)) is not None}
        missing = [part for part in parts if part.name not in ready]
        if workers is None and check_available(recipe.compute) == "cuda":
            workers = 1  # processes that share a GPU gain little, and may not fit into its memory together
        processes: Workers = "ray" if workers == "ray" else worker_count(workers, len(missing))
        if missing and processes != 1:
            _train_elsewhere(recipe, missing, work_dir, reporter, processes, seconds)
            return ready | _all_read(missing, work_dir)
        for part in missing:
            ready[part.name] = store.train(part, {name: ready[name] for name in part.needs})
    return ready


def _check(recipe: EnsembleRecipe, splits: Splits, workers: Workers) -> None:
    """Refuse workers that are not there and networks that cannot be made, before anything is written."""
    check_workers(workers)
    check_networks(recipe, splits.image_shape, len(splits.classes))


def _train_elsewhere(
    recipe: EnsembleRecipe,
    missing: Sequence[Part[Any]],
    work_dir: Path,
    reporter: Reporter,
    workers: Workers,
    seconds: Mapping[str, float],
) -> None:
    """Train parts in new processes or on Ray; they lie in the work folder when this returns."""
    names = {part.name for part in missing}
    here = workers != "ray"

    def job(part: Part[Any]) -> Job[Any]:
        after = tuple(name for name in part.needs if name in names)
        if here:
            return Job(part.name, _train_part, partial(tuple, (recipe, work_dir, part.name, part.key)), after=after)
        return Job(part.name, _train_apart, partial(_sent, recipe, work_dir, part), after=after)

    title = f"training in {workers} processes" if here else "training on Ray"
    mean = fmean(seconds.values()) if seconds else 1.0
    left = {name: seconds.get(name, mean) for name in names}
    total = sum(left.values()) or 1.0
    with reporter.step(title, len(missing)) as step:
        for done, result in run_jobs([job(part) for part in missing], workers):
            text, checkpoint = (result, None) if here else result
            if checkpoint is not None:
                write_folder(work_dir / done.name, *checkpoint)
            del left[done.name]
            step.advance(share=1.0 - sum(left.values()) / total)
            reporter.line(text)


def _train_part(recipe: EnsembleRecipe, work_dir: Path, name: str, key: Key) -> str:
    """Train one part in this process, store it in the work folder, and return what was reported."""
    text = io.StringIO()
    with one_thread():
        parts = {part.name: part for part in PartList(recipe, recipe.load_data()).all()}
        if other := parts[name].key.differs_in(asdict(key)):
            raise RecipeError(f"{name}: the process that trains it sees other {other}; make them the same everywhere")
        needs = _all_read([parts[need] for need in parts[name].needs], work_dir)
        PartStore(work_dir, Reporter(Console(file=text, width=200), line_every_s=math.inf)).train(parts[name], needs)
    return text.getvalue().rstrip()


def _all_read(parts: Sequence[Part[Any]], work_dir: Path) -> dict[str, Stored[Any]]:
    """Parts that were trained just now."""
    store, ready = PartStore(work_dir, silent_reporter()), {}
    for part in parts:
        stored = store.read(part)
        if stored is None:
            raise RecipeError(
                f"{part.name} was stored under another key than it has now: its data or its network's source changed "
                "meanwhile; run the command again"
            )
        ready[part.name] = stored
    return ready


def _sent(
    recipe: EnsembleRecipe, work_dir: Path, part: Part[Any]
) -> tuple[EnsembleRecipe, str, Key, dict[str, Checkpoint]]:
    """Arguments of `_train_apart`: with the checkpoints that the part starts from."""
    return recipe, part.name, part.key, {name: read_folder(work_dir / name) for name in part.needs}


def _train_apart(
    recipe: EnsembleRecipe, name: str, key: Key, needs: Mapping[str, Checkpoint]
) -> tuple[str, Checkpoint]:
    """Train one part on a machine that shares no disk with ours; returns what was reported and its checkpoint."""
    with tempfile.TemporaryDirectory(prefix="s2ap-") as folder:
        for need, checkpoint in needs.items():
            write_folder(Path(folder) / need, *checkpoint)
        return _train_part(recipe, Path(folder), name, key), read_folder(Path(folder) / name)
