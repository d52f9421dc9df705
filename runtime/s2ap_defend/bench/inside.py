"""How much of an executor's calls is spent inside engines, timed within these very calls."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from s2ap_defend.bench.choices import Clock
from s2ap_defend.bench.rounds import CLOCKS
from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.types import Float32, Float64, Verdicts

__all__ = ["Inside", "Spent", "covered_ns"]

_Span = tuple[int, int]


@dataclass(frozen=True)
class Spent:
    """Where calls were, seconds [rounds, calls].

    Attributes:
        inside: Inside an engine.
        before: Before the first run of an engine: images are checked.
        behind: Behind the last one: the last decision, and verdicts.
        runs: Runs of engines.
    """

    inside: Float64
    before: Float64
    behind: Float64
    runs: Float64


class Inside:
    """A classifier that takes down when its engines run, in every call.

    Between two runs of an engine an executor finds its numbers and instructions where the engine left them, so what it
    takes there can be measured nowhere else.

    Args:
        classifier: The file.
        clock: That of the calls.
    """

    def __init__(self, classifier: DefendedClassifier, clock: Clock) -> None:
        self._classifier, self._now = classifier, CLOCKS[clock]
        self._calls: list[_Span] = []
        self._runs: list[list[_Span]] = []
        classifier.executor.observe(self._ran, self._now)

    def __call__(self, images: Float32) -> Verdicts:
        """Run one batch."""
        self._runs.append([])
        began = self._now()
        verdicts = self._classifier(images)
        self._calls.append((began, self._now()))
        return verdicts

    def take(self, rounds: int, calls: int) -> Spent:
        """Where the latest rounds' calls were; forgets all calls."""
        latest = zip(self._calls[-rounds * calls :], self._runs[-rounds * calls :], strict=True)
        found = [
            (covered_ns(runs), min(runs)[0] - began, ended - max(end for _, end in runs), len(runs))
            for (began, ended), runs in latest
        ]
        self._calls, self._runs = [], []
        inside, before, behind, runs = np.array(found, dtype=np.float64).reshape(rounds, calls, 4).transpose(2, 0, 1)
        return Spent(inside / 1e9, before / 1e9, behind / 1e9, runs)

    def _ran(self, stage: str, began_ns: int, ended_ns: int) -> None:  # noqa: ARG002
        self._runs[-1].append((began_ns, ended_ns))


def covered_ns(spans: Iterable[_Span]) -> int:
    """Time in which at least one of some spans (began, ended) went on."""
    covered, until = 0, 0
    for began, ended in sorted(spans):
        covered += max(0, ended - max(began, until))
        until = max(until, ended)
    return covered
