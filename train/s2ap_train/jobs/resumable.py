"""Jobs that each find something: spread over processes, stored as they end, never done twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from s2ap_defend.progress import Reporter
from s2ap_train.jobs.job import Job, Workers
from s2ap_train.jobs.run import run_jobs
from s2ap_train.jobs.store import Found, Store

__all__ = ["SECONDS", "Done", "ResumableJob", "run_resumable", "stored_jobs"]

SECONDS = "seconds"
"""Note of everything that was found: the time that its job took, in the run that did it."""

Done = Mapping[str, Found]
"""What jobs found, by their names."""


@dataclass(frozen=True)
class ResumableJob:
    """A call that finds something.

    Attributes:
        name: Unique; shown as progress.
        function: Importable by name.
        arguments: Given what the jobs in `after` found, as far as they were done; of that, notes decide nothing.
        decides: Everything, other than the key of the store and what the jobs in `after` found, that its result
            depends on.
        after: Names of the jobs that it waits for.
        weight: Its time, roughly, against others.
        until: Time (`time.time()`) after which it is not begun; None: it always is.
        lasts: Whether what it finds is stored; not where it depends on something that no key can hold.
        says: A line to print about what it found; None: none.
    """

    name: str
    function: Callable[..., Found]
    arguments: Callable[[Done], tuple[Any, ...]]
    decides: object
    after: tuple[str, ...] = ()
    weight: float = 1.0
    until: float | None = field(default=None, compare=False)
    lasts: bool = True
    says: Callable[[Found], str] | None = None

    def key(self, done: Done) -> object:
        """What its result depends on, for the store: what it starts from is in it."""
        if not self.after:
            return self.decides
        return self.decides, [(name, done[name].sha256()) for name in self.after if name in done]


def run_resumable(
    jobs: Sequence[ResumableJob], store: Store, reporter: Reporter, *, title: str, workers: Workers = None
) -> dict[str, Found]:
    """What the jobs found; those that are stored are not done again, each is stored as soon as it ends.

    Args:
        jobs: In any order; those that take long are begun first.
        store: Of what they find.
        reporter: Shows every job, with an estimate of the time left.
        title: Of the progress that is shown.
        workers: Processes; None takes one a core; or "ray", where every node must see the files that jobs read.

    Returns:
        By name; a job whose time was over before it began is not there.

    Raises:
        RecipeError: If a process was killed; what a job raises is raised here.
    """
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):  # our own bug
        raise ValueError(f"several jobs have one name: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    done = stored_jobs(jobs, store)
    missing = {job.name: job for job in jobs if job.name not in done}
    if done:
        reporter.line(f"{title}: {len(done)} of {len(jobs)} reused")
    if not missing:
        return done
    with reporter.step(title, len(jobs)) as step:
        total = sum(job.weight for job in jobs)
        finished = sum(job.weight for job in jobs if job.name in done)
        step.advance(done=len(done), share=finished / total)
        handed_back: set[str] = set()
        calls = [_call(job, done, store, handed_back) for job in _longest_first(missing)]
        for call, found in run_jobs(calls, workers):
            job = missing[call.name]
            finished += job.weight
            if found is not None:
                if job.lasts and job.name not in handed_back:
                    store.save(job.key(done), found)
                done[job.name] = found
            step.advance(job.name, share=finished / total)
            if found is not None and job.says is not None and job.name not in handed_back:
                reporter.line(job.says(found))
        step.note = ""
    return done


def stored_jobs(jobs: Sequence[ResumableJob], store: Store) -> dict[str, Found]:
    """What is stored; of a job that starts from others, where these are stored and found what it started from."""
    done: dict[str, Found] = {}
    names = {job.name for job in jobs}
    waiting = [job for job in jobs if job.lasts]
    while ready := [job for job in waiting if names.intersection(job.after) <= done.keys()]:
        waiting = [job for job in waiting if job not in ready]
        for job in ready:
            found = store.load(job.key(done))
            if found is not None:
                done[job.name] = found
    return done


def _longest_first(missing: Mapping[str, ResumableJob]) -> list[ResumableJob]:
    """Jobs in the order in which they are begun: by what is still to come behind them, themselves included."""
    behind: dict[str, float] = {}

    def weight(name: str) -> float:
        if name not in behind:
            later = [weight(other.name) for other in missing.values() if name in other.after]
            behind[name] = missing[name].weight + max(later, default=0.0)
        return behind[name]

    return sorted(missing.values(), key=lambda job: -weight(job.name))


def _call(job: ResumableJob, done: dict[str, Found], store: Store, handed_back: set[str]) -> Job[Found | None]:
    def arguments() -> tuple[Any, ...]:
        found = store.load(job.key(done)) if job.lasts and job.after else None
        if found is not None:  # those before it were done again, and found the same
            handed_back.add(job.name)
            return _handed_back, None, (found,)
        return job.function, job.until, job.arguments({name: done[name] for name in job.after if name in done})

    return Job(job.name, _timed, arguments, job.after)


def _timed(function: Callable[..., Found], until: float | None, arguments: tuple[Any, ...]) -> Found | None:
    """Run a job and note its time, unless its time is over; also called in other processes."""
    if until is not None and time.time() > until:
        return None
    began = time.perf_counter()
    found = function(*arguments)
    return Found(found.images, {SECONDS: time.perf_counter() - began, **found.notes}, found.arrays)


def _handed_back(found: Found) -> Found:
    return found
