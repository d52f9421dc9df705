"""The executor whose time does not tell how many members an image needed."""

import time
from collections.abc import Callable
from typing import ClassVar

from s2ap_defend.executors import ExecutorName, OnRun
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.executors.stages import StageTime
from s2ap_defend.types import Float32, Verdicts

__all__ = ["ConstantExecutor"]


class ConstantExecutor:
    """Asks every stage about every image; verdicts are those of the others. See Executor.

    Args:
        staged: The stages.
    """

    name: ClassVar[ExecutorName] = "staged"

    def __init__(self, staged: StagedExecutor) -> None:
        self._staged = staged
        self.provider: str = staged.provider

    def times(self) -> dict[str, StageTime]:
        """What every engine has done since it was loaded, by its stages."""
        return self._staged.times()

    def observe(self, on_run: OnRun | None, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Call `on_run` after every run of an engine from now on, or nothing; `clock` says when it began and ended."""
        self._staged.observe(on_run, clock)

    def run(self, images: Float32) -> Verdicts:
        """Purify, detect and correct; see Executor.run."""
        return self._staged.run_all(images)
