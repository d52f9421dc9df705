"""The executor of one engine over the whole file: the reference of all others."""

import time
from collections.abc import Callable
from typing import ClassVar

from s2ap_defend.engines import Device
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.executors import ExecutorName, OnRun
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
        self._on_run: OnRun | None = None
        self._clock: Callable[[], int] = time.perf_counter_ns

    def run(self, images: Float32) -> Verdicts:
        """Purify, detect and correct; see Executor.run."""
        if self._on_run is None:
            return Verdicts(*self._engine.run({"image": images}, Verdicts.FIELDS))
        began_ns = self._clock()
        answers = self._engine.run({"image": images}, Verdicts.FIELDS)
        self._on_run("file", began_ns, self._clock())
        return Verdicts(*answers)

    def observe(self, on_run: OnRun | None, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Call `on_run` after every run from now on, or nothing; `clock` says when it began and ended."""
        self._on_run, self._clock = on_run, clock
