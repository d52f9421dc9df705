"""The executor that asks everybody at once: one graph without a branch, decided on the host when all has been said.

Every image costs as if all members were asked, and as if it were purified where any image is. Worth it where that is
less than the ways back and forth between waves, as for single images on a GPU.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from onnx import ModelProto

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.engines import Device
from s2ap_defend.engines.onnxruntime import available_device
from s2ap_defend.errors import EngineError
from s2ap_defend.executors import ExecutorName
from s2ap_defend.executors.everything import ask_everything
from s2ap_defend.executors.groups import asked_groups
from s2ap_defend.executors.stages import Stages, StageTime
from s2ap_defend.executors.starters import BoundStages, StageStarter, asked_of
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import SequentialTest
from s2ap_defend.types import Float32, Verdicts

__all__ = ["AtOnceExecutor"]


class AtOnceExecutor:
    """Runs all stages of a file as one graph; see Executor.

    Args:
        model: A defended model.
        test: Its tables.
        sees: What each of its members sees.
        purify: Which images are purified.
        on: How its stages are run, all of the file joined.
        folder: Where its external data lies; None: all weights are in memory.
    """

    name: ClassVar[ExecutorName] = "at_once"

    def __init__(
        self,
        model: ModelProto,
        test: SequentialTest,
        sees: Sequence[Sees],
        purify: Purify,
        *,
        on: StageStarter,
        folder: Path | None = None,
    ) -> None:
        self._test, self._purifies = test, purify
        self._groups = asked_groups(test, sees, purify, joining="file")
        started = on.start(model, self._groups, folder)
        self._stages = Stages(started, on.threads)
        self.provider: str = started[self._groups[0].scopes[0]].engine.provider

    @classmethod
    def of(cls, model: ModelFile, *, device: Device = "auto", threads: int | None = None) -> "AtOnceExecutor":
        """The executor of a verified file; `threads` are those inside an operator on the CPU.

        Raises:
            EngineError: If the device cannot be used, or is TensorRT, whose engines are one a stage.
        """
        chosen = available_device(device)
        if chosen == "tensorrt":
            raise EngineError("executor 'at_once' has no TensorRT engines, which are one a stage; choose 'staged'")
        return cls.with_starter(model, BoundStages(chosen, operator_threads=threads, joining="file"))

    @classmethod
    def with_starter(cls, model: ModelFile, starter: StageStarter) -> "AtOnceExecutor":
        """The executor of a verified file whose stages are run in a way of their own."""
        return cls(*asked_of(model), on=starter, folder=model.folder if model.data_locations else None)

    def times(self) -> dict[str, StageTime]:
        """What the engine has done since it was loaded, by its stages."""
        return self._stages.times()

    def run(self, images: Float32) -> Verdicts:
        """Purify, detect and correct; see Executor.run."""
        return ask_everything(self._stages, self._groups, self._test, self._purifies, images)
