"""Memory that a model takes, each in a fresh process of its own."""

import gc
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.engines import Device, Engine
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.executors import ExecutorName
from s2ap_defend.types import Float32

_STATUS = Path("/proc/self/status")
_RUNS = 3


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process beyond what it had before the model was opened.

    Attributes:
        ready_bytes: When the model has run some batches.
        peak_bytes: At most, opening and checking the file included.
    """

    ready_bytes: int
    peak_bytes: int


def measure_memory(
    model: Path, executor: ExecutorName | None, images: Float32, device: Device, threads: int | None
) -> Memory | None:
    """Open a model in a new process and run it; None where the system does not tell how much memory a process has.

    Args:
        model: A defended file, or with no executor one stage of it.
        executor: How the file is run.
        images: The batch that it runs [N, C, H, W].
        device: As of the engines.
        threads: As of the engines.
    """
    if not _STATUS.exists():
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measure, model, executor, images, device, threads).result()


def resident_bytes() -> int | None:
    """Memory of this process that is resident; None where the system does not tell."""
    return 1024 * _kilobytes("VmRSS") if _STATUS.exists() else None


def _measure(
    model: Path, executor: ExecutorName | None, images: Float32, device: Device, threads: int | None
) -> Memory:
    before = _kilobytes("VmRSS")
    run: Callable[[Float32], object]
    if executor is None:
        run = partial(_run_stage, OnnxRuntimeEngine(model, device=device, threads=threads))
    else:
        run = DefendedClassifier.load(model, device=device, threads=threads, executor=executor)
    for _ in range(_RUNS):
        run(images)
    gc.collect()
    return Memory(1024 * (_kilobytes("VmRSS") - before), 1024 * (_kilobytes("VmHWM") - before))


def _run_stage(engine: Engine, images: Float32) -> object:
    return engine.run({"image": images}, ["log_probabilities"])


def _kilobytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
