"""The executor that asks everybody at once: one graph without a branch, decided on the host when all has been said.

Every image costs as if all members were asked, and as if it were purified where any image is. Worth it where that is
less than the ways back and forth between waves, as for single images on a GPU.
"""

from typing import ClassVar

from s2ap_defend.engines import Device
from s2ap_defend.engines.onnxruntime import available_device
from s2ap_defend.errors import EngineError
from s2ap_defend.executors import ExecutorName
from s2ap_defend.executors.everything import ask_everything
from s2ap_defend.executors.groups import asked_groups
from s2ap_defend.executors.stages import Stages, StageTime
from s2ap_defend.executors.starters import BoundStages, StageStarter
from s2ap_defend.model_file import ModelFile
from s2ap_defend.types import Float32, Verdicts

__all__ = ["AtOnceExecutor"]


class AtOnceExecutor:
    """Runs all stages of a file as one graph; see Executor.

    Args:
        model: A verified file.
        on: How its stages are run, all of the file joined.
    """

    name: ClassVar[ExecutorName] = "at_once"

    def __init__(self, model: ModelFile, *, on: StageStarter) -> None:
        manifest = model.manifest
        self._test, self._purifies = manifest.to_test(), manifest.decision.purify
        sees = [member.sees for member in manifest.members]
        self._groups = asked_groups(self._test, sees, self._purifies, joining="file")
        started = on.start(model.proto, self._groups)
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
        return cls(model, on=BoundStages(chosen, operator_threads=threads, joining="file"))

    def times(self) -> dict[str, StageTime]:
        """What the engine has done since it was loaded, by its stages."""
        return self._stages.times()

    def run(self, images: Float32) -> Verdicts:
        """Purify, detect and correct; see Executor.run."""
        return ask_everything(self._stages, self._groups, self._test, self._purifies, images)
