"""The executor that asks everybody at once: one graph without a branch, decided on the host when all has been said.

Every image costs as if all members were asked, and as if it were purified where any image is. Worth it where that is
less than the ways back and forth between waves, as for single images on a GPU.
"""

import time
from collections.abc import Callable
from typing import ClassVar

from s2ap_defend.engines import Device
from s2ap_defend.engines.onnxruntime import available_device
from s2ap_defend.errors import EngineError
from s2ap_defend.executors import ExecutorName, OnRun
from s2ap_defend.executors.everything import ask_everything
from s2ap_defend.executors.stages import Stages, StageTime
from s2ap_defend.executors.starters import BoundStages, Defence, StageStarter
from s2ap_defend.model_file import ModelFile
from s2ap_defend.types import Float32, Verdicts

__all__ = ["AtOnceExecutor"]


class AtOnceExecutor:
    """Runs all stages of a file as one graph, and decides when all have answered.

    Args:
        defence: What is run.
        on: How its stages are put on an engine, all in one graph.
    """

    name: ClassVar[ExecutorName] = "at_once"

    def __init__(self, defence: Defence, *, on: StageStarter) -> None:
        self._test, self._purifies = defence.test, defence.purify
        self._groups, stages = defence.start(on, "file")
        self._stages = Stages(stages, on.threads)
        self.provider: str = stages[self._groups[0].scopes[0]].engine.provider

    @classmethod
    def of(cls, model: ModelFile, *, device: Device = "auto", threads: int | None = None) -> "AtOnceExecutor":
        """The executor of a verified file; `threads` are those inside an operator on the CPU.

        Raises:
            EngineError: If the device cannot be used, or is TensorRT, whose engines are one a stage.
        """
        chosen = available_device(device)
        if chosen == "tensorrt":
            raise EngineError("executor 'at_once' has no TensorRT engines, which are one a stage; choose 'staged'")
        return cls.with_starter(model, BoundStages(chosen, operator_threads=threads))

    @classmethod
    def with_starter(cls, model: ModelFile, starter: StageStarter) -> "AtOnceExecutor":
        """The executor of a verified file whose stages are run in a way of their own."""
        return cls(Defence.of(model), on=starter)

    def times(self) -> dict[str, StageTime]:
        """What the engine has done since it was loaded, by its stages."""
        return self._stages.times()

    def observe(self, on_run: OnRun | None, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Call `on_run` after every run of the engine from now on, or nothing; `clock` says when it began and ended."""
        self._stages.observe(on_run, clock)

    def run(self, images: Float32) -> Verdicts:
        """Purify every image, ask all members, then detect and correct.

        Args:
            images: float32 [N, C, H, W], N > 0. Pixels may be any numbers: what is not in [0, 1] is flagged.

        Raises:
            EngineError: If the engine fails.
        """
        return ask_everything(self._stages, self._groups, self._test, self._purifies, images)
