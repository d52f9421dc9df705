"""Running jobs as tasks of Ray, on this machine or on a cluster.

Nothing is shared but pickles: arguments and results carry all that a task reads and writes, so the nodes need no common
disk. Every node needs this package, of the same version, and the data where the recipe says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from s2ap_defend.errors import RecipeError
from s2ap_train.allocator import reuse_freed_memory
from s2ap_train.jobs.job import Job, Schedule

T = TypeVar("T")


def run_on_ray(jobs: Sequence[Job[T]]) -> Iterator[tuple[Job[T], T]]:
    """Run jobs as tasks of one CPU each, as `run_jobs` does; the connection is closed at the end.

    It connects to the cluster that RAY_ADDRESS names, and starts Ray on this machine without one. Statistics of use are
    not sent.

    Raises:
        RecipeError: If the cluster cannot be reached or a task was lost; what a job raises is raised here.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when ray is imported
    import ray

    _connect(ray)
    try:
        yield from _results(ray, jobs)
    finally:
        ray.shutdown()  # ends the tasks that are still running


def _connect(ray: Any) -> None:  # noqa: ANN401
    address = os.environ.get("RAY_ADDRESS")
    own = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **own)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(f"Ray {where} cannot be used: {reason}; start it, or give --workers a number") from error


def _results(ray: Any, jobs: Sequence[Job[T]]) -> Iterator[tuple[Job[T], T]]:  # noqa: ANN401
    schedule = Schedule(jobs)
    running: dict[Any, Job[T]] = {}
    task = ray.remote(num_cpus=1, max_retries=0)(_call)
    while True:
        for job in schedule.ready():
            running[task.remote(job.function, *job.arguments())] = job
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        job = running.pop(done[0])
        try:
            result = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the job's own error, without the task's traceback
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise RecipeError(f"Ray lost {job.name}: {reason}; run the same command again to go on") from error
        schedule.finish(job)
        yield job, result


def _call(function: Callable[..., T], *arguments: object) -> T:
    reuse_freed_memory()
    return function(*arguments)
