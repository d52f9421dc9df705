import io
import os
import re
import time
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from rich.console import Console
from tests.train.toy_resumable import broken, filled

from s2ap_defend.progress import Reporter
from s2ap_train.jobs import SECONDS, Found, ResumableJob, Store, run_resumable


class Bench:
    """Jobs that log every call, a store and a reporter."""

    def __init__(self, folder):
        self.folder, self.log, self.told = folder, folder / "calls", io.StringIO()

    def job(self, name, value, *, after=(), weight=1.0, until=None, function=filled):
        return ResumableJob(name, function, lambda _: (value, self.log), (name, value), after, weight, until)

    def run(self, *jobs, workers=1, clock=time.monotonic):
        reporter = Reporter(Console(file=self.told, width=200), line_every_s=0.0, clock=clock)
        return run_resumable(jobs, Store(self.folder, "key"), reporter, title="attacks", workers=workers)

    @property
    def calls(self):
        return [float(line) for line in self.log.read_text().split()] if self.log.exists() else []


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_what_was_found_is_stored_and_nothing_is_done_twice(bench):
    first = bench.run(bench.job("a", 0.25), bench.job("b", 0.5))
    again = bench.run(bench.job("a", 0.25), bench.job("b", 0.5), bench.job("c", 0.75))
    assert sorted(bench.calls) == [0.25, 0.5, 0.75]
    assert (again["a"].images == first["a"].images).all()
    assert again["a"].notes == first["a"].notes
    assert again["a"].notes[SECONDS] > 0.0
    assert "attacks: 2 of 3 reused" in bench.told.getvalue()


def test_a_job_that_fails_loses_nothing_of_those_before_it(bench):
    with pytest.raises(RuntimeError, match="planted"):
        bench.run(bench.job("a", 0.25, weight=2.0), bench.job("b", 0.5, function=broken))
    bench.run(bench.job("a", 0.25), bench.job("b", 0.5))
    assert bench.calls == [0.25, 0.5, 0.5]


def test_a_job_that_depends_on_something_else_is_done_again(bench):
    bench.run(bench.job("a", 0.25))
    found = bench.run(bench.job("a", 0.75))
    assert (found["a"].images == np.float32(0.75)).all()
    assert bench.calls == [0.25, 0.75]


def test_a_job_is_given_what_those_before_it_found(bench):
    second = ResumableJob("b", filled, lambda done: (float(done["a"].images.max()) * 2, bench.log), "b", ("a",))
    found = bench.run(second, bench.job("a", 0.25))
    assert (found["b"].images == np.float32(0.5)).all()


def test_what_others_wait_for_and_what_takes_long_is_begun_first(bench):
    bench.run(
        bench.job("short", 0.1, weight=1.0),
        bench.job("long", 0.2, weight=3.0),
        bench.job("waits", 0.3, after=("first",), weight=4.0),
        bench.job("first", 0.4, weight=0.5),
    )
    assert bench.calls == [0.4, 0.3, 0.2, 0.1]  # what waited starts before shorter ones that were ready all along


def test_a_job_whose_time_is_over_is_not_begun_and_those_behind_it_do_without(bench):
    late = bench.job("late", 0.1, until=time.time() - 1.0)
    found = bench.run(late, bench.job("always", 0.2, after=("late",)))
    assert found.keys() == {"always"}
    assert bench.calls == [0.2]
    assert bench.run(bench.job("late", 0.1)).keys() == {"late"}  # and is not taken for done afterwards


def test_processes_find_the_same(bench):
    found = bench.run(*(bench.job(str(i), i / 8) for i in range(3)), workers=2)
    assert [float(found[str(i)].images.max()) for i in range(3)] == [0.0, 0.125, 0.25]
    assert {one.notes["process"] for one in found.values()}.isdisjoint({os.getpid()})


def test_the_time_left_is_said(bench):
    seconds = count(step=30)
    bench.run(bench.job("a", 0.25, weight=3.0), bench.job("b", 0.5), clock=lambda: next(seconds))
    (left,) = re.findall(r"attacks: 1/2 a; about (\d+) s left", bench.told.getvalue())
    assert left == "20"  # a third of what the first took, two looks at the clock


def test_what_started_from_less_is_not_taken_for_what_starts_from_all(bench):
    """A search that ran when time was over for others is run again when they have run."""
    late = bench.job("late", 0.1, until=time.time() - 1.0)
    bench.run(late, bench.job("search", 0.2, after=("late",)))
    bench.run(bench.job("late", 0.1), bench.job("search", 0.2, after=("late",)))
    assert bench.calls == [0.2, 0.1, 0.2]
    bench.run(bench.job("late", 0.1), bench.job("search", 0.2, after=("late",)))
    assert bench.calls == [0.2, 0.1, 0.2]


def test_what_does_not_last_is_done_again_and_what_starts_from_it_is_not(bench):
    fleeting = replace(bench.job("server", 0.1), lasts=False)
    for _ in range(2):
        found = bench.run(fleeting, bench.job("search", 0.2, after=("server",)))
    assert bench.calls == [0.1, 0.2, 0.1]  # it found the same the second time
    assert found["search"].notes["value"] == 0.2


def test_what_a_job_found_is_said_once(bench):
    job = replace(bench.job("a", 0.25), says=lambda found: f"found {found.images.max():g}")
    for _ in range(2):
        bench.run(job)
    assert bench.told.getvalue().splitlines().count("found 0.25") == 1


def test_what_was_found_behind_a_job_that_is_done_every_time_is_said_once(bench):
    first = replace(bench.job("first", 0.5), lasts=False)
    job = replace(bench.job("a", 0.25), after=("first",), says=lambda found: f"found {found.images.max():g}")
    for _ in range(2):
        bench.run(first, job)
    assert bench.told.getvalue().splitlines().count("found 0.25") == 1


def test_arrays_that_a_job_starts_from_decide_it_and_notes_do_not():
    job = ResumableJob("b", filled, lambda _: (), "b", ("a",))
    first = Found(np.zeros((2, 1, 2, 2), dtype=np.float32), {SECONDS: 1.0}, {"by": np.array([0, 1])})
    slower, other = replace(first, notes={SECONDS: 2.0}), replace(first, arrays={"by": np.array([1, 0])})
    assert job.key({"a": first}) == job.key({"a": slower}) != job.key({"a": other})
