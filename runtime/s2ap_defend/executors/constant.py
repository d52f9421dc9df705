"""The executor whose time does not tell how many members an image needed."""

from typing import ClassVar

from s2ap_defend.executors import ExecutorName
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.executors.stages import OnRun, StageTime
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

    def observe(self, on_run: OnRun | None) -> None:
        """Call this after every run of an engine from now on, or nothing."""
        self._staged.observe(on_run)

    def run(self, images: Float32) -> Verdicts:
        """Purify, detect and correct; see Executor.run."""
        return self._staged.run_all(images)
