"""The executor of one engine a stage: what is left to ask is decided on the host, between the runs.

A wave runs for the images that ask for it, gathered; nothing runs for nobody, and there is no plumbing in a graph. The
decision is that of the numpy reference, which equals the graph of the whole file to the last bit.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import ClassVar

import numpy as np

from s2ap_defend.engines import Device
from s2ap_defend.executors import ExecutorName, Landed, OnRun
from s2ap_defend.executors.everything import ask_everything
from s2ap_defend.executors.few import FEW, FewImages
from s2ap_defend.executors.flight import Flight
from s2ap_defend.executors.groups import PURIFY, waves_of
from s2ap_defend.executors.rows import Opened, Rows, sanitise
from s2ap_defend.executors.stages import Stages, StageTime
from s2ap_defend.executors.starters import Defence, StageStarter, starter_for
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import Path as TestPath
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, member_scope
from s2ap_defend.types import Bool, Float32, Int64, Verdicts

__all__ = ["WORTH_PARTING", "StagedExecutor"]

_PURIFIED, _ERROR = f"{PURIFIER}/purified", f"{PURIFIER}/reconstruction_error"
WORTH_PARTING = 1 << 12
"""Rows that ask nobody any more are parted from those that do where this many numbers, of members and classes, would be
counted for them, as nothing: about 30 ns each, and taking rows apart costs some 100 microseconds."""


class StagedExecutor:
    """Runs the stages of a file one after the other, each for the images that need it; see Executor.

    Either all at once, by `run`, or step by step:

        flight = executor.start(images)         # numbered from 0
        while not flight.empty:
            landed = executor.step(flight)      # landed.number, landed.verdicts
            executor.join(flight, more)         # at any time: numbered on

    A step runs one wave. Images that have just joined go first, then it is the turn of those that have been waiting
    longest, and of all that wait for the same wave: nobody waits for ever, and nobody waits for who needs more members.
    An image that is alone takes all of its waves in one step.

    Args:
        defence: What is run.
        on: How its stages are put on engines.
        few: Log-probabilities of the classifier, of all images of a run, up to which it decides without arrays.
    """

    name: ClassVar[ExecutorName] = "staged"

    def __init__(self, defence: Defence, *, on: StageStarter, few: int = FEW) -> None:
        test, purify = defence.test, defence.purify
        groups, stages = defence.start(on, on.joining)
        self._stages = Stages(stages, on.threads)
        self.provider: str = stages[groups[0].scopes[0]].engine.provider
        self._test, self._purifies, self._waves = test, purify, waves_of(test, purify)
        self._says = [_says(member_scope(i)) for i in range(test.members)]
        self._groups = [[group for group in groups if group.step == step] for step in range(len(self._waves))]
        self._few = FewImages(self._stages, self._groups, self._waves, test, purify, most=few)

    @classmethod
    def of(
        cls,
        model: ModelFile,
        *,
        device: Device = "auto",
        threads: int | None = None,
        cache: bool = False,
        engines: Path | None = None,
    ) -> "StagedExecutor":
        """The executor of a verified file on a device, as `DefendedClassifier.load` takes it."""
        return cls.with_starter(model, starter_for(model, device=device, threads=threads, cache=cache, engines=engines))

    @classmethod
    def with_starter(cls, model: ModelFile, starter: StageStarter) -> "StagedExecutor":
        """The executor of a verified file whose stages are run in a way of their own."""
        return cls(Defence.of(model), on=starter)

    def times(self) -> dict[str, StageTime]:
        """What every engine has done since it was loaded, by its stages: 'classifier+member_000+member_001'."""
        return self._stages.times()

    def observe(self, on_run: OnRun | None, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Call `on_run` after every run of an engine from now on, or nothing; `clock` says when it began and ended."""
        self._stages.observe(on_run, clock)

    def run(self, images: Float32) -> Verdicts:
        """Purify, detect and correct; see Executor.run."""
        opened = self._open(images)
        verdicts = self._few.run(opened)
        return self._finish(0, self._rows(opened, 0)) if verdicts is None else verdicts

    def run_all(self, images: Float32) -> Verdicts:
        """The same by all stages for all images, however early each of them is decided."""
        return ask_everything(
            self._stages, [one for of in self._groups for one in of], self._test, self._purifies, images
        )

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
        flight.join(images)

    def step(self, flight: Flight) -> Landed:
        """Run one wave of a flight that is not empty, or all of them for an image that is alone.

        Raises:
            EngineError: If an engine fails; the images of the wave are lost to the flight.
        """
        fresh = flight.take_fresh()
        if fresh:
            images = fresh[0][1] if len(fresh) == 1 else np.concatenate([images for _, images in fresh])
            opened = self._open(images)
            verdicts = self._few.run(opened) if len(images) == 1 and flight.empty else None
            if verdicts is not None:
                number = np.full(1, fresh[0][0])
                return Landed(number, number, verdicts)
            return self._sort(flight, 0, self._rows(opened, fresh[0][0]))
        step, rows = flight.take_waiting()
        return self._sort(flight, step, self._run(step, rows))

    def _open(self, images: Float32) -> Opened:
        """The first wave."""
        sane, error = sanitise(images), np.zeros(len(images), dtype=np.float32)
        purified = sane.image
        said = self._stages.ask([(of.scopes[0], sane.image) for of in self._groups[0] if of.sees == "raw"])
        if self._purifies == "always":
            purified, error = said[_PURIFIED], said[_ERROR]
            said |= self._stages.ask([(of.scopes[0], purified) for of in self._groups[0] if of.sees == "purified"])
        return Opened(sane, purified, error, said)

    def _rows(self, opened: Opened, number: int) -> Rows:
        """The images behind the first wave, numbered on from a number."""
        sane, said, error = opened.sane, opened.said, opened.error
        count = len(error)
        classified = said[_says(CLASSIFIER)]
        logs = np.empty((len(self._waves[0]), *classified.shape), dtype=np.float32)
        for name, answers in zip(self._says, logs, strict=False):
            answers[...] = said[name]
        opening = logs[: self._test.opening]
        path = TestPath(self._test, classified, opening, reconstruction_error=error, valid=sane.valid)
        path.scan(0, logs)
        return Rows(
            number=np.arange(number, number + count),
            born=np.full(count, number),
            image=sane.image,
            purified=opened.purified,
            probabilities=said[_probabilities(CLASSIFIER)],
            reconstruction_error=error,
            opening=opening.swapaxes(0, 1),
            path=path,
            valid=sane.valid,
            finite=sane.finite,
        )

    def _finish(self, step: int, rows: Rows) -> Verdicts:
        """Run all steps behind one."""
        if _nobody_waits(rows):
            return rows.verdicts()
        for later in range(step + 1, len(self._waves)):
            asking = self._waits(later - 1, later, rows)
            asks = np.count_nonzero(asking)
            if not asks:
                continue
            numbers = (len(rows) - asks) * len(self._waves[later]) * rows.probabilities.shape[1]
            if numbers > WORTH_PARTING or self._purifies_in(later):
                behind = (self._waits(later - 1, i, rows) for i in range(later + 1, len(self._waves)))
                going = reduce(np.logical_or, behind, asking)
                if not going.all():
                    part = rows.take(going)
                    verdicts = rows.verdicts()
                    _overwrite(verdicts, going, self._finish(later, self._run(later, part)))
                    return verdicts
            rows = self._run(later, rows)
        return rows.verdicts()

    def _run(self, step: int, rows: Rows) -> Rows:
        """A later step, for rows of which one at least waits for it."""
        return self._purify(rows) if self._purifies_in(step) else self._ask(step, rows)

    def _purify(self, rows: Rows) -> Rows:
        """Purify what the opening did not accept, and begin anew there."""
        opening = rows.opening.swapaxes(0, 1)
        said = self._stages.ask([(PURIFIER, rows.image)])
        purified, error = said[_PURIFIED], said[_ERROR]
        apart = [group for group in self._groups[PURIFY] if group.sees == "purified"]
        said |= self._stages.ask([(group.scopes[0], purified) for group in apart])
        path = TestPath(self._test, said[_says(CLASSIFIER_AGAIN)], opening, valid=rows.valid)
        path.scan(0, opening)
        probabilities = said[_probabilities(CLASSIFIER_AGAIN)]
        return replace(rows, purified=purified, probabilities=probabilities, reconstruction_error=error, path=path)

    def _ask(self, step: int, rows: Rows) -> Rows:
        """A later wave; every member runs for the rows that may ask it, sensors for undecided ones alone."""
        wave, path = self._waves[step], rows.path
        asking = {True: path.waits(wave.start, len(wave)).nonzero()[0]}  # by whether the member votes
        if not all(group.votes for group in self._groups[step]):
            asking[False] = (~path.decided).nonzero()[0]
        asked = [group for group in self._groups[step] if len(asking[group.votes])]
        seen = {
            (eye, votes): _chosen(rows.image if eye == "raw" else rows.purified, asking[votes])
            for eye, votes in {(group.sees, group.votes) for group in asked}
        }
        said = self._stages.ask([(group.scopes[0], seen[group.sees, group.votes]) for group in asked])
        logs = np.zeros((len(wave), *path.classifier.shape), dtype=np.float32)
        for i, answers in zip(wave, logs, strict=True):
            if self._says[i] in said:
                answers[asking[self._test.jurors[i]]] = said[self._says[i]]
        path.scan(wave.start, logs)
        return rows

    def _purifies_in(self, step: int) -> bool:
        return self._purifies == "suspicious" and step == PURIFY

    def _sort(self, flight: Flight, step: int, rows: Rows) -> Landed:
        """Let rows wait for the next step that asks them; those that none does are finished."""
        if _nobody_waits(rows):
            return _landed(rows.number, rows)
        left = np.ones(len(rows), dtype=bool)
        for later in range(step + 1, len(self._waves)):
            waits = left & self._waits(step, later, rows)
            if waits.any():
                flight.waiting.setdefault(later, []).append(rows.take(waits))
                left &= ~waits
        return _landed(rows.number, rows.take(left))

    def _waits(self, step: int, later: int, rows: Rows) -> Bool:
        path, wave = rows.path, self._waves[later]
        if self._purifies != "suspicious" or step >= PURIFY:
            return path.waits(wave.start, len(wave))
        if later == PURIFY:
            return np.asarray(~path.decided | path.adversarial)
        return np.zeros(len(rows), dtype=bool)


def _landed(ran: Int64, finished: Rows) -> Landed:
    return Landed(ran, finished.number, finished.verdicts())


def _overwrite(verdicts: Verdicts, rows: Bool, by: Verdicts) -> None:
    for name in Verdicts.FIELDS:
        getattr(verdicts, name)[rows] = getattr(by, name)


def _nobody_waits(rows: Rows) -> bool:
    path = rows.path
    return np.count_nonzero(path.decided) == len(path) and not np.count_nonzero(path.adversarial)


def _chosen(images: Float32, rows: Int64) -> Float32:
    return images if len(rows) == len(images) else images.take(rows, axis=0)


def _says(scope: str) -> str:
    return f"{scope}/log_probabilities"


def _probabilities(scope: str) -> str:
    return f"{scope}/probabilities"
