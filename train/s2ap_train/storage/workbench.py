"""Long training in parts: each part is kept in a checkpoint folder and reused where its settings are unchanged."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from rich.console import Console
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.storage.checkpoint import load_checkpoint, restore, save_checkpoint
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.storage.stopwatch import OnEpoch, Stopwatch

M = TypeVar("M", bound=nn.Module)
_WEIGHT = "weight."


@dataclass(frozen=True)
class Trained(Generic[M]):
    """What training a part hands back.

    Attributes:
        model: The trained module.
        record: JSON values to keep beside the weights; `architecture` rebuilds the module. `seconds` of training, those
            before an interruption included, are added unless they are there.
        beside: Further tensors to keep, such as masks and scores.
    """

    model: M
    record: Mapping[str, Any]
    beside: Mapping[str, Tensor] = field(default_factory=dict)


class MissingPart(Exception):  # noqa: N818
    """A part would have to be trained, and the workbench may not."""


class Workbench:
    """Trains parts, or reloads them.

    Args:
        work_dir: Folder of the checkpoints.
        reporter: Told about every part.
        train: Whether a part that cannot be reloaded is trained; otherwise MissingPart is raised.
        keep: Whether what is trained is kept; of several processes that train one part, only the first does.
    """

    def __init__(self, work_dir: Path, reporter: Reporter, *, train: bool = True, keep: bool = True) -> None:
        self._work_dir = work_dir
        self._reporter = reporter
        self._train = train
        self._keep = keep

    def silent(self) -> "Workbench":
        """The same, telling nobody."""
        return Workbench(self._work_dir, Reporter(Console(file=io.StringIO())), train=self._train, keep=self._keep)

    def part(
        self,
        name: str,
        *,
        settings: object,
        epochs: int,
        rebuild: Callable[[Mapping[str, Any]], M],
        train: Callable[[OnEpoch, Snapshots], Trained[M]],
        note: Callable[[Mapping[str, float]], str],
        summary: Callable[[Mapping[str, Any]], str],
    ) -> tuple[M, Mapping[str, Any]]:
        """The trained module, in evaluation mode, and its record.

        Args:
            name: Of the part and its folder.
            settings: Everything that decides the result: a kept checkpoint is reused only if it was made with the same.
            epochs: Epochs of the whole training, for the progress bar.
            rebuild: An untrained module from the record's architecture.
            train: The training; it calls its first argument after every epoch and keeps its state in the second, to go
                on where it was killed.
            note: What to show of an epoch's metrics.
            summary: What to show of a record.
        """
        folder = self._work_dir / name
        key = fingerprint(settings)
        reused = self._reload(folder, key, rebuild)
        if reused is not None:
            self._reporter.line(f"{name}: reused  {summary(reused[1])}")
            return reused[0].eval(), reused[1]
        if not self._train:
            raise MissingPart(name)
        unfinished = self._work_dir / f"{name}.unfinished"
        snapshots, watch = Snapshots(unfinished, key), Stopwatch(unfinished / "seconds" if self._keep else None, key)
        with self._reporter.step(name, epochs) as step:
            trained = train(watch.timed(name, lambda _, metrics: step.advance(note(metrics))), snapshots)
            watch.lap(name)
            step.note = summary(trained.record)
        record = {"seconds": watch.seconds(name), **trained.record}
        weights = trained.model.state_dict()
        if self._keep:
            tensors = {f"{_WEIGHT}{key}": value for key, value in weights.items()} | dict(trained.beside)
            save_checkpoint(folder, tensors=tensors, record={**record, "settings": key})
            snapshots.clear()
        model = rebuild(record["architecture"])  # in the memory layout of one that is reloaded: it decides last bits
        restore(model, weights)
        return model.eval(), record

    def holds_another(self, name: str, settings: object) -> bool:
        """Whether a finished part of that name is there that other settings made: `part` would replace it."""
        folder = self._work_dir / name
        try:
            return folder.exists() and load_checkpoint(folder)[1].get("settings") != fingerprint(settings)
        except RecipeError:
            return False  # damaged: nothing to lose

    def _reload(
        self, folder: Path, key: str, rebuild: Callable[[Mapping[str, Any]], M]
    ) -> tuple[M, Mapping[str, Any]] | None:
        if not folder.exists():
            return None
        try:
            tensors, record = load_checkpoint(folder)
            if record.get("settings") != key:
                self._reporter.line(
                    f"{folder.name}: trained again, because its settings differ from those it was made with"
                )
                return None
            model = rebuild(record["architecture"])
            restore(model, {name.removeprefix(_WEIGHT): t for name, t in tensors.items() if name.startswith(_WEIGHT)})
        except RecipeError as error:
            self._reporter.line(f"{folder.name}: trained again, because {error}")
            return None
        return model, record


def accuracies(metrics: Mapping[str, float]) -> str:
    """What to show of an epoch of a classifier: accuracy, robust accuracy and mask flips, as far as they are there."""
    names = {"validation_accuracy": "accuracy", "validation_robust_accuracy": "robust", "flip_rate": "mask flips"}
    return "  ".join(f"{text} {metrics[key]:.1%}" for key, text in names.items() if key in metrics)


def fingerprint(settings: object) -> str:
    """SHA-256 over settings: JSON values, dataclasses, pydantic models, and tuples of them."""
    return hashlib.sha256(json.dumps(settings, default=_plain, sort_keys=True).encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: getattr(value, part.name) for part in fields(value)}
    raise TypeError(f"{type(value).__name__} has no fingerprint")
