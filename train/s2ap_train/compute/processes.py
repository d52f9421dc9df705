"""Training in several processes of one machine, on lightning-fabric."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import PicklingError
from typing import Any, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.multiprocessing.spawn import ProcessExitedException

from s2ap_defend.errors import DefendError, RecipeError
from s2ap_train.allocator import reuse_freed_memory
from s2ap_train.compute.process import Compute, LostProcessError
from s2ap_train.compute.settings import ComputeSettings
from s2ap_train.fresh_processes import fresh_processes

R = TypeVar("R")


def launch_processes(
    settings: ComputeSettings, accelerator: str, function: Callable[..., R], args: tuple[object, ...]
) -> R:
    """As `launch`, for settings of several devices that are there.

    Call, result and errors go through files: a pipe would block a process whose result nobody reads yet, and shared
    memory is small in containers.

    Raises:
        RecipeError: If a process raised one or was killed.
        RuntimeError: If it raised anything else, or the call cannot be pickled.
    """
    with tempfile.TemporaryDirectory(prefix="s2ap-defend.") as name, _quiet(), _environment_kept():
        folder = Path(name)
        try:
            torch.save((settings, function, args), folder / "call.pt")
        except (AttributeError, TypeError, ValueError, PicklingError) as error:  # a closure, a lock, an open file
            raise RuntimeError(f"{function!r} and its arguments cannot be sent to other processes: {error}") from error
        strategy = _QuietStrategy(cluster_environment=LightningEnvironment(), start_method=_start_method())
        fabric = Fabric(accelerator=accelerator, devices=settings.devices, strategy=strategy)
        try:
            work: Callable[..., None] = _work  # the arguments of launch go to it
            fabric.launch(work, name, max(1, torch.get_num_threads() // settings.devices))
        except ProcessExitedException as error:
            raise _failure(folder, error.exit_code) from error
        result: R = _read(folder / "result.pt")
    return result


def _start_method() -> Literal["spawn", "forkserver"]:
    """Lightning refuses forks, of whatever process, once this one has begun with CUDA."""
    forks = fresh_processes().get_start_method() == "forkserver" and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return "forkserver" if forks else "spawn"


def _work(fabric: Any, folder_name: str, threads: int) -> None:  # noqa: ANN401
    """What every launched process runs; it leaves its result or its error in the folder."""
    folder = Path(folder_name)
    torch.set_num_threads(threads)
    reuse_freed_memory()
    try:
        settings, function, args = _read(folder / "call.pt", mmap=True)
        precision = settings.precision_on(fabric.device)
        compute = Compute(fabric.device, precision=precision, channels_last=settings.channels_last, fabric=fabric)
        result = function(compute, *args)
        if compute.is_main:
            torch.save(result, folder / "result.pt")
        compute.mean([torch.zeros(1, device=compute.device)])  # ended together: none is missed by another
        torch.distributed.destroy_process_group()  # its threads, left running, may abort a process that ends
        if not compute.is_main:
            os._exit(0)  # the first process returns to the launcher, which waits for its answer
    except Exception as error:  # whatever it is, the launching process must hear of it
        whole = "".join(traceback.format_exception(error))
        rank_of_cause = 0 if isinstance(error, DefendError) else 2 if isinstance(error, LostProcessError) else 1
        failure = (rank_of_cause, time.monotonic_ns(), str(error), whole)
        written = folder / f"error{fabric.global_rank}.new"
        torch.save(failure, written)
        written.rename(written.with_suffix(".pt"))  # whole or not at all: this process may be ended any moment
        os._exit(1)  # at once: an orderly exit waits for the other processes, which wait for this one


def _failure(folder: Path, exit_code: int) -> Exception:
    """What made the processes end, from the errors that they left: our own first, then the earliest.

    A killed process leaves none, and those that lost it are not the cause.
    """
    left = sorted(_read(path) for path in folder.glob("error*.pt"))
    if left and left[0][0] < 2:
        rank_of_cause, _, message, whole = left[0]
        return RuntimeError(f"a training process failed:\n{whole}") if rank_of_cause else RecipeError(message)
    how = (
        f"by {signal.Signals(-exit_code).name}"
        if exit_code < 0
        else f"or cut off ({left[0][2] if left else exit_code})"
    )
    return RecipeError(
        f"a training process was killed {how} before it was done; if memory ran out, lower batch_size or devices"
    )


def _read(path: Path, *, mmap: bool = False) -> Any:  # noqa: ANN401
    """What one of our own processes pickled a moment ago; tensors come back on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=False, mmap=mmap)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within this context lightning_fabric and torch do not say which processes they start and stop."""
    loggers = [logging.getLogger(name) for name in ("lightning_fabric", "torch.multiprocessing.spawn")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Afterwards the environment is as before: the port of one launch must not be that of the next."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


class _QuietStrategy(DDPStrategy):
    """Data-parallel processes that join without a word on standard error."""

    def setup_environment(self) -> None:
        with _quiet():
            super().setup_environment()
