"""Running jobs in this process, in processes of this machine, or on Ray."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from s2ap_defend.errors import RecipeError
from s2ap_train.allocator import reuse_freed_memory
from s2ap_train.fresh_processes import fresh_processes
from s2ap_train.jobs.job import Job, Schedule, Workers

T = TypeVar("T")


def check_workers(workers: Workers) -> None:
    """Refuse workers that are not there, before anything is done.

    Raises:
        RecipeError: If it is Ray and Ray is not installed, or a number below one.
    """
    if workers == "ray" and importlib.util.find_spec("ray") is None:
        raise RecipeError("--workers ray needs Ray, which is not installed; pip install '.[ray]' in a checkout")
    if isinstance(workers, int) and workers < 1:
        raise RecipeError(f"workers is {workers}; give a number from 1, or ray")


def worker_count(workers: int | None, jobs: int) -> int:
    """Processes for so many jobs."""
    return max(1, min(jobs, workers if workers is not None else os.cpu_count() or 1))


def run_jobs(jobs: Sequence[Job[T]], workers: Workers) -> Iterator[tuple[Job[T], T]]:
    """Run jobs, each when those that it waits for are done; yield them with their results as they end.

    One worker runs them in this process, more in new processes that are ended when one raises, when this process is
    interrupted, or when the iteration is given up. Ray: see `run_on_ray`.

    Args:
        jobs: In the order in which they are to be started where nothing else decides.
        workers: How many at a time.

    Raises:
        RecipeError: If a process was killed, or Ray is not there; what a job raises is raised here.
    """
    check_workers(workers)
    if not jobs:
        return
    if workers == "ray":
        from s2ap_train.jobs.on_ray import run_on_ray

        yield from run_on_ray(jobs)
    elif (processes := worker_count(workers, len(jobs))) == 1:
        yield from _run_here(jobs)
    else:
        yield from _run_in_processes(jobs, processes)


def _run_here(jobs: Sequence[Job[T]]) -> Iterator[tuple[Job[T], T]]:
    reuse_freed_memory()
    schedule = Schedule(jobs)
    while ready := schedule.ready(1):
        (job,) = ready
        result = job.function(*job.arguments())
        schedule.finish(job)
        yield job, result


def _run_in_processes(jobs: Sequence[Job[T]], processes: int) -> Iterator[tuple[Job[T], T]]:
    schedule = Schedule(jobs)
    pool = ProcessPoolExecutor(processes, fresh_processes(), _begin_worker)
    running: dict[Future[bytes], Job[T]] = {}
    try:
        while True:
            for job in schedule.ready(processes - len(running)):
                running[pool.submit(_call, job.function, pickle.dumps(job.arguments()))] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                result = pickle.loads(future.result())  # noqa: S301  (from our own process)
                schedule.finish(job)
                yield job, result
    except BrokenProcessPool as error:
        raise RecipeError(
            "a training process was killed, perhaps for want of memory; run the same command again to go on, with "
            f"fewer --workers than {processes} if it happens again"
        ) from error
    except BaseException:
        for child in multiprocessing.active_children():  # parts are written whole or not at all: nothing is lost
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _call(function: Callable[..., object], arguments: bytes) -> bytes:
    """Call a function in a worker.

    Arguments and result travel as bytes. As objects, their tensors would be handed over as shared memory through a
    server in the parent, which breaks off with a traceback when a worker is ended while it asks.
    """
    return pickle.dumps(function(*pickle.loads(arguments)))  # noqa: S301  (from our own process)


def _begin_worker() -> None:
    """Let Ctrl-C end a worker without a traceback, and the parent's end, however it came, end it too.

    The parent says what happened; a worker that went on would train what a second start trains as well.
    """
    reuse_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_exit_after_the_parent, daemon=True).start()


def _exit_after_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # what is trained is kept after every epoch, written whole or not at all
