"""The executor of one engine a stage: what is left to ask is decided on the host, between the runs.

A wave runs for the images that ask for it, gathered; nothing runs for nobody, and there is no plumbing in a graph. The
decision is that of the numpy reference, which equals the graph of the whole file to the last bit.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from onnx import ModelProto

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.engines import Device, Engine
from s2ap_defend.engines.cores import usable_cores
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine, chosen_device
from s2ap_defend.executors import ExecutorName, Landed
from s2ap_defend.executors.cache import StageCache
from s2ap_defend.executors.rows import Rows, joined_rows, sanitise
from s2ap_defend.executors.stages import StageGraph, Stages, StageTime, stage_graphs
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import Path, SequentialTest
from s2ap_defend.types import Bool, Float32, Verdicts

__all__ = ["Flight", "StagedExecutor"]

PURIFY = 1
"""Step in which suspicious images are purified, where only these are; waves are numbered around it."""


@dataclass
class Flight:
    """Images that were started and are not finished; made by `start`, and used by one thread at a time.

    Attributes:
        number: Of the next image that is started.
        fresh: Images that no stage has seen, with the number of the first.
        waiting: Rows by the step that they wait for.
        newcomers: Whether the latest step was that of fresh images.
    """

    number: int = 0
    fresh: list[tuple[int, Float32]] = field(default_factory=list)
    waiting: dict[int, list[Rows]] = field(default_factory=dict)
    newcomers: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing is left to do."""
        return not self.fresh and not self.waiting


class StagedExecutor:
    """Runs the stages of a file one after the other, each for the images that need it; see Executor.

    Either all at once, by `run`, or step by step:

        flight = executor.start(images)         # numbered from 0
        while not flight.empty:
            landed = executor.step(flight)      # landed.number, landed.verdicts
            executor.join(flight, more)         # at any time: numbered on

    A step runs one wave. Images that have just joined go first, then it is the turn of those that have been waiting
    longest, and of all that wait for the same wave: nobody waits for ever, and nobody waits for who needs more members.

    Args:
        model: A defended model, weights in memory.
        test: Its tables.
        sees: What each of its members sees.
        purify: Which images are purified.
        device: As for OnnxRuntimeEngine.
        threads: Engine runs at a time; None: as many as this process has cores. Every run has one thread.
        cache: Where optimised graphs of its stages are kept; None: nowhere.
    """

    name: ClassVar[ExecutorName] = "staged"

    def __init__(
        self,
        model: ModelProto,
        test: SequentialTest,
        sees: Sequence[Sees],
        purify: Purify,
        *,
        device: Device = "auto",
        threads: int | None = None,
        cache: StageCache | None = None,
    ) -> None:
        graphs, optimised = (cache.read() if cache else {}), bool(cache)
        if not graphs:
            graphs, optimised = stage_graphs(model, test.members, again=purify == "suspicious"), False
        with cache.writing(graphs) if cache and not optimised else nullcontext() as folder:

            def start(scope: str, graph: StageGraph) -> Engine:
                save_to = folder / f"{scope}.onnx" if folder else None
                return OnnxRuntimeEngine(graph.model, device=device, threads=1, optimised=optimised, save_to=save_to)

            self._stages = Stages.of(graphs, start, threads=threads or usable_cores())
        self.provider: str = self._stages.classifier.engine.provider
        self._test, self._purifies = test, purify
        self._sees = tuple("raw" if purify == "off" else eye for eye in sees)
        sizes = list(test.waves)
        if purify == "suspicious":
            rest = sizes[0] - test.opening
            sizes = [test.opening, 0, *([rest] if rest else []), *sizes[1:]]
        self._waves = [range(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]

    @classmethod
    def of(
        cls, model: ModelFile, *, device: Device = "auto", threads: int | None = None, cache: bool = False
    ) -> "StagedExecutor":
        """The executor of a verified file; `cache` as in `DefendedClassifier.load`."""
        manifest = model.manifest
        sees = [member.sees for member in manifest.members]
        kept = StageCache(model) if cache and chosen_device(device) == "cpu" else None
        purify = manifest.decision.purify
        return cls(model.proto, manifest.to_test(), sees, purify, device=device, threads=threads, cache=kept)

    def times(self) -> dict[str, StageTime]:
        """What every stage has done since it was loaded, by scope."""
        return self._stages.times()

    def run(self, images: Float32) -> Verdicts:
        """Purify, detect and correct; see Executor.run."""
        flight = self.start(images)
        landed = [self.step(flight)]
        while not flight.empty:
            landed.append(self.step(flight))
        return landed[0].verdicts if len(landed) == 1 else in_order(landed)

    def start(self, images: Float32) -> Flight:
        """Take images in, without running anything.

        Args:
            images: As for `run`; they must not change before they are finished.
        """
        flight = Flight()
        self.join(flight, images)
        return flight

    def join(self, flight: Flight, images: Float32) -> None:
        """Let more images join; the first of them gets the number `flight.number`."""
        flight.fresh.append((flight.number, images))
        flight.number += len(images)

    def step(self, flight: Flight) -> Landed:
        """Run one wave of a flight that is not empty.

        Raises:
            EngineError: If an engine fails; the images of the wave are lost to the flight.
        """
        flight.newcomers = bool(flight.fresh) and not (flight.newcomers and flight.waiting)
        if flight.newcomers:
            fresh, flight.fresh = flight.fresh, []
            return self._sort(flight, 0, self._open(fresh))
        step = _turn(flight)
        rows = joined_rows(flight.waiting.pop(step))
        rows = self._purify(rows) if self._purifies == "suspicious" and step == PURIFY else self._ask(step, rows)
        return self._sort(flight, step, rows)

    def _open(self, fresh: Sequence[tuple[int, Float32]]) -> Rows:
        """The first wave."""
        images = fresh[0][1] if len(fresh) == 1 else np.concatenate([images for _, images in fresh])
        sane, count = sanitise(images), len(images)
        image = purified = sane.image
        stages, wave, always = self._stages, self._waves[0], self._purifies == "always"
        raw = [i for i in wave if self._sees[i] == "raw"]
        behind = [i for i in wave if self._sees[i] == "purified"]
        asked = [(stages.members[i], image) for i in raw]
        if always:
            (purified, error), *said = stages.ask([(stages.purifier, image), *asked])
            asked = [(stages.members[i], purified) for i in behind]
            (classified, probabilities), *more = stages.ask([(stages.classifier, purified), *asked])
        else:
            error, more = np.zeros(count, dtype=np.float32), []
            (classified, probabilities), *said = stages.ask([(stages.classifier, image), *asked])
        answers = dict(zip([*raw, *behind], [*said, *more], strict=True))
        logs = np.concatenate([answers[i][0] for i in wave]).reshape(len(wave), *classified.shape)
        opening = logs[: self._test.opening]
        path = Path(self._test, classified, opening, reconstruction_error=error, valid=sane.valid)
        path.scan(0, logs)
        everyone = np.ones(count, dtype=bool)
        return Rows(
            number=np.arange(fresh[0][0], fresh[0][0] + count),
            born=np.full(count, fresh[0][0]),
            image=image,
            purified=purified,
            probabilities=probabilities,
            reconstruction_error=error,
            opening=opening.swapaxes(0, 1),
            path=path,
            valid=everyone if sane.valid is None else sane.valid,
            finite=everyone if sane.finite is None else sane.finite,
        )

    def _purify(self, rows: Rows) -> Rows:
        """Purify what the opening did not accept, and begin anew there."""
        stages, opening = self._stages, rows.opening.swapaxes(0, 1)
        ((purified, error),) = stages.ask([(stages.purifier, rows.image)])
        ((logs, probabilities),) = stages.ask([(stages.again, purified)])
        path = Path(self._test, logs, opening, valid=rows.valid)
        path.scan(0, opening)
        return replace(rows, purified=purified, probabilities=probabilities, reconstruction_error=error, path=path)

    def _ask(self, step: int, rows: Rows) -> Rows:
        """A later wave; every member runs for the rows that may ask it, sensors for undecided ones alone."""
        wave, path = self._waves[step], rows.path
        asking = {True: path.waits(wave.start, len(wave)), False: ~path.decided}  # by whether the member votes
        views = {i: (self._sees[i], bool(self._test.vote_weights[i])) for i in wave}
        asked = [i for i in wave if asking[views[i][1]].any()]
        seen = {
            (eye, votes): _chosen(rows.image if eye == "raw" else rows.purified, asking[votes])
            for eye, votes in {views[i] for i in asked}
        }
        questions = [(self._stages.members[i], seen[views[i]]) for i in asked]
        logs = np.zeros((len(wave), *path.classifier.shape), dtype=np.float32)
        for i, (answer,) in zip(asked, self._stages.ask(questions), strict=True):
            logs[i - wave.start, asking[views[i][1]]] = answer
        path.scan(wave.start, logs)
        return rows

    def _sort(self, flight: Flight, step: int, rows: Rows) -> Landed:
        """Let rows wait for the next step that asks them; those that none does are finished."""
        path = rows.path
        if path.decided.all() and not path.adversarial.any():
            return Landed(rows.number, rows.number, rows.verdicts())
        left = np.ones(len(rows), dtype=bool)
        for later in range(step + 1, len(self._waves)):
            waits = left & self._waits(step, later, rows)
            if waits.any():
                flight.waiting.setdefault(later, []).append(rows.take(waits))
                left &= ~waits
        finished = rows.take(left)
        return Landed(rows.number, finished.number, finished.verdicts())

    def _waits(self, step: int, later: int, rows: Rows) -> Bool:
        path, wave = rows.path, self._waves[later]
        if self._purifies != "suspicious" or step >= PURIFY:
            return path.waits(wave.start, len(wave))
        if later == PURIFY:
            return np.asarray(~path.decided | path.adversarial)
        return np.zeros(len(rows), dtype=bool)


def in_order(landed: Sequence[Landed]) -> Verdicts:
    """All verdicts by ascending number of their images."""
    number = np.concatenate([one.number for one in landed])
    return Verdicts.concatenate([one.verdicts for one in landed]).rows(np.argsort(number))


def _chosen(images: Float32, index: Bool) -> Float32:
    return images if index.all() else images[index]


def _turn(flight: Flight) -> int:
    """The first step that a row waits for of those that came with the oldest."""
    oldest = {step: min(int(rows.born.min()) for rows in parts) for step, parts in flight.waiting.items()}
    return min(oldest, key=lambda step: (oldest[step], step))
