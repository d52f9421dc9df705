"""A few images at once: each is decided in numbers of Python, which costs less than arrays that hold few of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2ap_defend.decision_record import Purify
from s2ap_defend.engines import Array
from s2ap_defend.executors.groups import PURIFY, Group
from s2ap_defend.executors.rows import Opened
from s2ap_defend.executors.stages import Stages
from s2ap_defend.sequential import LARGEST, SequentialTest, SinglePath, SingleTables
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, member_scope
from s2ap_defend.types import Float32, Verdicts

__all__ = ["FEW", "FewImages"]

FEW = 80
"""Log-probabilities of the classifier, of all images, up to which this is faster, by measurement."""

_PURIFIED, _ERROR = f"{PURIFIER}/purified", f"{PURIFIER}/reconstruction_error"
_Logs = list[list[float]]


class _TooLargeError(Exception):
    """Answers are not finite, or so large that only arrays round them as the file does."""


@dataclass
class _Known:
    """What is known of n images: as in Verdicts, and their paths."""

    purified: Float32
    probabilities: Float32
    error: Float32
    paths: list[SinglePath]


class FewImages:
    """Purifies, detects and corrects a few images.

    Args:
        stages: The engines.
        groups: Which stages are asked together, by step.
        waves: The members that each step asks.
        test: The tables.
        purify: Which images are purified.
        most: Log-probabilities of the classifier, of all images, that are taken.
    """

    def __init__(
        self,
        stages: Stages,
        groups: Sequence[Sequence[Group]],
        waves: Sequence[range],
        test: SequentialTest,
        purify: Purify,
        *,
        most: int = FEW,
    ) -> None:
        self._stages, self._test, self._tables, self._purifies = stages, test, SingleTables(test), purify
        self._waves, self._groups, self._most = waves, groups, most
        self._says = [f"{member_scope(i)}/log_probabilities" for i in range(test.members)]

    def run(self, opened: Opened) -> Verdicts | None:
        """The verdicts, once the first wave has answered.

        Returns:
            None where that is for arrays: there are too many numbers, a pixel is none, or an answer is not finite.

        Raises:
            EngineError: If an engine fails.
        """
        classified = opened.said[f"{CLASSIFIER}/log_probabilities"]
        if classified.size > self._most or opened.sane.valid is not None:
            return None
        images = opened.sane.image
        try:
            wave = [_numbers(opened.said[name]) for name in self._says[: len(self._waves[0])]]
            paths = self._paths(_numbers(classified), wave, opened.error.tolist())
            known = _Known(opened.purified, opened.said[f"{CLASSIFIER}/probabilities"], opened.error, paths)
            if self._purifies == "suspicious":
                self._purify(images, known, wave[: self._test.opening])
            for step in range(1 + (self._purifies == "suspicious"), len(self._waves)):
                self._ask(step, images, known)
        except _TooLargeError:
            return None
        return _verdicts(images, known)

    def _paths(self, classified: _Logs, wave: Sequence[_Logs], errors: Sequence[float | None]) -> list[SinglePath]:
        """Paths behind the first wave, whose answers are [w][n][K]."""
        paths = []
        for row, (logs, error) in enumerate(zip(classified, errors, strict=True)):
            said = [of[row] for of in wave]
            path = SinglePath(self._tables, logs, said[: self._test.opening], reconstruction_error=error)
            path.scan(0, said)
            paths.append(path)
        return paths

    def _purify(self, images: Float32, known: _Known, opening: Sequence[_Logs]) -> None:
        """Purify what the opening did not accept, and begin anew there."""
        rows = [row for row, path in enumerate(known.paths) if path.adversarial or not path.decided]
        if not rows:
            return
        said = self._stages.ask([(PURIFIER, _chosen(images, rows))])
        purified, error = said[_PURIFIED], said[_ERROR]
        said |= self._stages.ask([(of.scopes[0], purified) for of in self._groups[PURIFY] if of.sees == "purified"])
        classified = _numbers(said[f"{CLASSIFIER_AGAIN}/log_probabilities"])
        wave = [[of[row] for row in rows] for of in opening]
        paths = self._paths(classified, wave, [None] * len(rows))
        probabilities = said[f"{CLASSIFIER_AGAIN}/probabilities"]
        if len(rows) == len(images):
            known.purified, known.probabilities, known.error, known.paths = purified, probabilities, error, paths
            return
        known.purified, known.probabilities, known.error = images.copy(), known.probabilities.copy(), known.error.copy()
        known.purified[rows], known.probabilities[rows], known.error[rows] = purified, probabilities, error
        for row, path in zip(rows, paths, strict=True):
            known.paths[row] = path

    def _ask(self, step: int, images: Float32, known: _Known) -> None:
        """A later wave; every member runs for the images that may ask it, sensors for undecided ones alone."""
        wave, paths = self._waves[step], known.paths
        waiting = [row for row, path in enumerate(paths) if path.waits(wave.start, len(wave))]
        if not waiting:
            return
        asking = {True: waiting, False: [row for row in waiting if not paths[row].decided]}  # by whether it votes
        said = self._stages.ask(
            [
                (group.scopes[0], _chosen(images if group.sees == "raw" else known.purified, asking[group.votes]))
                for group in self._groups[step]
                if asking[group.votes]
            ]
        )
        logs: dict[int, list[list[float] | None]] = {row: [] for row in waiting}
        for i in wave:
            who = asking[self._test.jurors[i]]
            answers = dict(zip(who, _numbers(said[self._says[i]]), strict=True)) if who else {}
            for row in waiting:
                logs[row].append(answers.get(row))
        for row in waiting:
            paths[row].scan(wave.start, logs[row])


def _numbers(answers: Array) -> _Logs:
    """Log-probabilities [n, K] as numbers of Python."""
    found: _Logs = answers.tolist()
    for logs in found:
        if not -LARGEST < sum(logs) < LARGEST:
            raise _TooLargeError
    return found


def _chosen(images: Float32, rows: list[int]) -> Float32:
    return images if len(rows) == len(images) else images[rows]


def _verdicts(images: Float32, known: _Known) -> Verdicts:
    paths = known.paths
    label, adversarial, abstained = zip(*[path.verdict() for path in paths], strict=True)
    return Verdicts(
        label=np.array(label),
        adversarial=np.array(adversarial),
        base_label=np.array([path.base_label for path in paths]),
        probabilities=known.probabilities,
        label_change_rate=np.array([path.label_change_rate for path in paths], dtype=np.float32),
        log_likelihood_ratio=np.array([path.ratio for path in paths]),
        members_used=np.array([path.used for path in paths]),
        votes=np.array([path.votes for path in paths]),
        purified=images.copy() if known.purified is images else known.purified,
        reconstruction_error=known.error,
        abstained=np.array(abstained),
    )
