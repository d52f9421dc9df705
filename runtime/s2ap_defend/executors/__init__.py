"""Executors: how the engines of a model file are run. All of them give the same verdicts."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from s2ap_defend.types import Float32, Int64, Verdicts

__all__ = ["USUAL", "Executor", "ExecutorName", "Landed", "OnRun"]

ExecutorName = Literal["whole", "staged", "at_once"]
"""'whole' is one engine over the whole file; 'staged' one for each stage, what is left to ask decided on the host;
'at_once' one that purifies every image and asks all members, without a branch."""
USUAL: tuple[ExecutorName, ...] = ("whole", "staged")
"""Those that are compared unless others are named: asking everybody costs most where it is not launches that cost."""

OnRun = Callable[[str, int, int], None]
"""Called after every run of an engine, on the thread that ran it: its stages, when it began and ended, nanoseconds."""


class Executor(Protocol):
    """Runs one model file on one device. It may be called from several threads."""

    @property
    def name(self) -> ExecutorName:
        """Which it is."""

    @property
    def provider(self) -> str:
        """Name of the execution provider that runs the engines."""

    def run(self, images: Float32) -> Verdicts:
        """Purify, detect and correct.

        Args:
            images: float32 [N, C, H, W], N > 0, of the model's shape. Pixels may be any numbers: what is not in [0, 1]
                is flagged, what is not finite abstains.

        Raises:
            EngineError: If an engine fails.
        """

    def observe(self, on_run: OnRun | None, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Call `on_run` after every run of an engine from now on, or nothing; `clock` says when it began and ended."""


@dataclass(frozen=True)
class Landed:
    """What a step did.

    Attributes:
        ran: Numbers of the images that it ran.
        number: Numbers of those that are finished [n].
        verdicts: Of these.
    """

    ran: Int64
    number: Int64
    verdicts: Verdicts
