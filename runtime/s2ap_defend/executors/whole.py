"""The executor of one engine over the whole file: the reference of all others."""

from typing import ClassVar

from s2ap_defend.engines import Device
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.executors import ExecutorName
from s2ap_defend.model_file import ModelFile
from s2ap_defend.types import Float32, Verdicts

__all__ = ["WholeExecutor"]


class WholeExecutor:
    """Runs the file as it is; see Executor.

    Args:
        model: A verified file.
        device: As for OnnxRuntimeEngine.
        threads: Threads inside one operator.
    """

    name: ClassVar[ExecutorName] = "whole"

    def __init__(self, model: ModelFile, *, device: Device = "auto", threads: int | None = None) -> None:
        self._engine = OnnxRuntimeEngine(model.path, device=device, threads=threads)
        self.provider: str = self._engine.provider

    def run(self, images: Float32) -> Verdicts:
        """Purify, detect and correct; see Executor.run."""
        return Verdicts(*self._engine.run({"image": images}, Verdicts.FIELDS))
