"""Long training in parts: each has a checkpoint folder, and is reloaded while its key is the same."""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.storage.checkpoint import check_replaceable, load_checkpoint, restore, save_checkpoint
from s2ap_train.storage.fingerprint import fingerprint
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.storage.stopwatch import OnEpoch, Stopwatch

__all__ = ["Key", "Part", "PartStore", "Stored", "Trained", "silent_reporter"]

M = TypeVar("M", bound=nn.Module)
_WEIGHT = "weight."


@dataclass(frozen=True)
class Key:
    """Everything that decides a trained part, as fingerprints: two parts are the same exactly where all are equal.

    Attributes:
        settings: Of every setting and seed.
        data: Of the images and labels.
        code: Of the source of the user's network; empty for one of ours.
        needs: Of the keys of the parts that it starts from.
    """

    settings: str
    data: str
    code: str = ""
    needs: str = ""

    @property
    def text(self) -> str:
        """One fingerprint of all."""
        return fingerprint(asdict(self))

    def differs_in(self, stored: object) -> str:
        """What another key, as read from a record, differs in, in words; empty: they are equal."""
        if not isinstance(stored, Mapping):
            return "format"  # of an earlier version
        words = {"settings": "settings", "data": "data", "code": "network source", "needs": "starting networks"}
        return " and ".join(word for name, word in words.items() if stored.get(name) != getattr(self, name))


@dataclass(frozen=True)
class Trained(Generic[M]):
    """What training a part hands back.

    Attributes:
        model: The trained module.
        record: JSON values to store with the weights; `architecture` rebuilds the module. `seconds` of training, those
            before an interruption included, are added unless they are there.
        tensors: Further tensors to store, such as masks and scores.
    """

    model: M
    record: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored(Generic[M]):
    """A part that is there: the module, in evaluation mode, and its record."""

    model: M
    record: Mapping[str, Any]


Needs = Mapping[str, Stored[Any]]
"""The parts that one starts from, by name."""


@dataclass(frozen=True)
class Part(Generic[M]):
    """Something that is trained once.

    Attributes:
        name: Of the part and its folder.
        key: Everything that decides it.
        epochs: Of the whole training, for the progress bar.
        train: The training, given the parts in `needs`; it calls the hook after every epoch and stores its state in the
            snapshots, to go on where it was killed.
        rebuild: An untrained module from the record's architecture.
        note: What to show of an epoch's metrics.
        summary: What to show of a record.
        needs: Names of the parts that it starts from.
    """

    name: str
    key: Key
    epochs: int
    train: Callable[[Needs, OnEpoch, Snapshots], Trained[M]]
    rebuild: Callable[[Mapping[str, Any]], M]
    note: Callable[[Mapping[str, float]], str]
    summary: Callable[[Mapping[str, Any]], str]
    needs: tuple[str, ...] = ()


class PartStore:
    """Reads parts from a work folder, and trains them into it.

    Args:
        work_dir: Folder of the checkpoints.
        reporter: Shows every part.
        writes: Whether what is trained is stored; of several processes that train one part, only the first does.
    """

    def __init__(self, work_dir: Path, reporter: Reporter, *, writes: bool = True) -> None:
        self._work_dir = work_dir
        self._reporter = reporter
        self._writes = writes

    def read(self, part: Part[M]) -> Stored[M] | None:
        """A part that was stored under its key; None: it is missing, and what is there instead is reported."""
        folder = self._work_dir / part.name
        if not folder.exists():
            return None
        try:
            tensors, record = load_checkpoint(folder)
            other = part.key.differs_in(record.get("key"))
            if other:
                self._reporter.line(f"{part.name}: stale, its {other} changed since it was made")
                return None
            model = part.rebuild(record["architecture"])
            restore(model, {name.removeprefix(_WEIGHT): t for name, t in tensors.items() if name.startswith(_WEIGHT)})
        except RecipeError as error:
            self._reporter.line(f"{part.name}: unusable, {error}")
            return None
        self._reporter.line(f"{part.name}: reused  {part.summary(record)}")
        return Stored(model.eval(), record)

    def train(self, part: Part[M], needs: Needs) -> Stored[M]:
        """Train a part and store it, in the place of what is there; it goes on where an earlier run was killed.

        Raises:
            RecipeError: Before it is trained, if what is there is no checkpoint.
        """
        if self._writes:
            check_replaceable(self._work_dir / part.name)
        unfinished, key = self._work_dir / f"{part.name}.unfinished", part.key.text
        snapshots, watch = Snapshots(unfinished, key), Stopwatch(unfinished / "seconds" if self._writes else None, key)
        with self._reporter.step(part.name, part.epochs) as step:
            hook = watch.timed(part.name, lambda _, metrics: step.advance(part.note(metrics)))
            trained = part.train(needs, hook, snapshots)
            watch.lap(part.name)
            step.note = part.summary(trained.record)
        record = {"seconds": watch.seconds(part.name), **trained.record}
        weights = trained.model.state_dict()
        if self._writes:
            tensors = {f"{_WEIGHT}{name}": value for name, value in weights.items()} | dict(trained.tensors)
            save_checkpoint(self._work_dir / part.name, tensors=tensors, record={**record, "key": asdict(part.key)})
            snapshots.clear()
        model = part.rebuild(record["architecture"])  # in the memory layout of one that is read: it decides last bits
        restore(model, weights)
        return Stored(model.eval(), record)

    def prepare(self, parts: Iterable[Part[Any]]) -> dict[str, Stored[Any]]:
        """All of these parts, read or trained here, in an order in which each comes behind those that it needs."""
        ready: dict[str, Stored[Any]] = {}
        for part in parts:
            ready[part.name] = self.read(part) or self.train(part, {name: ready[name] for name in part.needs})
        return ready

    def differs(self, part: Part[Any]) -> str:
        """What a whole part of that name that is there was made with and this one is not, in words; empty: nothing.

        Training would replace it.
        """
        folder = self._work_dir / part.name
        try:
            return part.key.differs_in(load_checkpoint(folder)[1].get("key")) if folder.exists() else ""
        except RecipeError:
            return ""  # damaged: nothing to lose


def silent_reporter() -> Reporter:
    """Shows nothing."""
    return Reporter(Console(file=io.StringIO()))
