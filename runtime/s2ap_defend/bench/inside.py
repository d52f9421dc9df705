"""How much of an executor's calls is spent inside engines, timed within these very calls."""

from collections.abc import Iterable

import numpy as np

from s2ap_defend.bench.choices import Clock
from s2ap_defend.bench.rounds import CLOCKS
from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.types import Float32, Float64, Verdicts

__all__ = ["Inside", "covered_ns"]

_Span = tuple[int, int]


class Inside:
    """A classifier that takes down when its engines run, in every call.

    Between two runs of an engine an executor finds its numbers and instructions where the engine left them, so what it
    takes there can be measured nowhere else.

    Args:
        classifier: The file.
        clock: That of the calls.
    """

    def __init__(self, classifier: DefendedClassifier, clock: Clock) -> None:
        self._classifier = classifier
        self._calls: list[list[_Span]] = []
        classifier.executor.observe(self._ran, CLOCKS[clock])

    def __call__(self, images: Float32) -> Verdicts:
        """Run one batch."""
        self._calls.append([])
        return self._classifier(images)

    def take(self, rounds: int, calls: int) -> Float64:
        """Seconds inside engines of the latest rounds' calls [rounds, calls]; forgets all calls."""
        spans, self._calls = self._calls[-rounds * calls :], []
        return np.array([covered_ns(one) for one in spans]).reshape(rounds, calls) / 1e9

    def _ran(self, stage: str, began_ns: int, ended_ns: int) -> None:  # noqa: ARG002
        self._calls[-1].append((began_ns, ended_ns))


def covered_ns(spans: Iterable[_Span]) -> int:
    """Time in which at least one of some spans (began, ended) went on."""
    covered, until = 0, 0
    for began, ended in sorted(spans):
        covered += max(0, ended - max(began, until))
        until = max(until, ended)
    return covered
