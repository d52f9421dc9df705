"""Starting the executor of a file."""

from pathlib import Path
from typing import get_args

from s2ap_defend.engines import Device
from s2ap_defend.errors import EngineError
from s2ap_defend.executors import Executor, ExecutorName
from s2ap_defend.executors.at_once import AtOnceExecutor
from s2ap_defend.executors.constant import ConstantExecutor
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.executors.whole import WholeExecutor
from s2ap_defend.model_file import ModelFile

__all__ = ["start_executor"]


def start_executor(
    model: ModelFile,
    name: ExecutorName | None = None,
    *,
    device: Device = "auto",
    threads: int | None = None,
    cache: bool = False,
    engines: Path | None = None,
    constant_time: bool = False,
) -> Executor:
    """Start an executor.

    Args:
        model: A verified file.
        name: None takes 'staged', which was measured to be as fast or faster (docs/performance.md).
        device: 'auto', 'cpu', 'cuda' or 'tensorrt'.
        threads: As for `DefendedClassifier.load`.
        cache: As there.
        engines: As there.
        constant_time: As there.

    Raises:
        ModelFileError: If the file cannot be run.
        EngineError: If the device cannot be used, or there is no such executor.
    """
    if name is not None and name not in get_args(ExecutorName):
        raise EngineError(f"executor {name!r} is not known; choose {', '.join(get_args(ExecutorName))}")
    if constant_time and name == "whole":
        raise EngineError(
            "the executor 'whole' cannot take constant time: the file itself stops early; take 'staged' or 'at_once'"
        )
    if name in (None, "staged"):
        staged = StagedExecutor.of(model, device=device, threads=threads, cache=cache, engines=engines)
        return ConstantExecutor(staged) if constant_time else staged
    if name == "at_once":  # its time is constant by nature
        return AtOnceExecutor.of(model, device=device, threads=threads)
    return WholeExecutor(model, device=device, threads=threads)
