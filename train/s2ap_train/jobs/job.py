"""A job, and who may do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
Workers = int | Literal["ray"] | None
"""Processes that work at the same time; None = one a core; "ray" = as many as the Ray cluster has CPUs."""


@dataclass(frozen=True)
class Job(Generic[T]):
    """A call that another process can make.

    Attributes:
        name: What errors call it.
        function: Importable by name.
        arguments: Asked for here, in this process, when the job starts, so after all that it waits for; they and the
            result travel as pickles.
        after: Names of the jobs that it waits for; those that are not among the jobs are done already.
    """

    name: str
    function: Callable[..., T]
    arguments: Callable[[], tuple[Any, ...]]
    after: tuple[str, ...] = ()


class Schedule(Generic[T]):
    """Which jobs may start now."""

    def __init__(self, jobs: Iterable[Job[T]]) -> None:
        self._waiting = list(jobs)
        self._unfinished = {job.name for job in self._waiting}
        if len(self._unfinished) < len(self._waiting):  # our own bug
            raise ValueError("two jobs have the same name")

    def ready(self, most: int | None = None) -> list[Job[T]]:
        """The first jobs that wait for nothing, in their order, each handed out once.

        Args:
            most: How many at the most; one that is listed early and becomes ready late then starts before those behind
                it.
        """
        ready = [job for job in self._waiting if self._unfinished.isdisjoint(job.after)][:most]
        self._waiting = [job for job in self._waiting if job not in ready]
        if not ready and self._waiting and self._unfinished == {job.name for job in self._waiting}:  # our own bug
            raise ValueError(f"jobs wait for one another: {', '.join(job.name for job in self._waiting)}")
        return ready

    def finish(self, job: Job[T]) -> None:
        """A job is done."""
        self._unfinished.discard(job.name)
