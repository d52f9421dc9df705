"""Jobs in this process and in others: their order, and how they end."""

import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.train.toy_jobs import die, double, fail, names_in, page_faults, shared_and_doubled

from s2ap_defend import RecipeError
from s2ap_train.jobs import Job, check_workers, run_jobs, worker_count


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_job_starts_when_those_it_waits_for_are_done(tmp_path, workers):
    jobs = [
        Job("c", names_in, partial(tuple, (tmp_path, "c")), after=("a", "b")),
        Job("b", names_in, partial(tuple, (tmp_path, "b")), after=("a", "made before")),
        Job("a", names_in, partial(tuple, (tmp_path, "a"))),
    ]
    assert [(job.name, found) for job, found in run_jobs(jobs, workers)] == [
        ("a", ["a"]),
        ("b", ["a", "b"]),
        ("c", ["a", "b", "c"]),
    ]


def test_what_a_job_raises_is_raised_and_no_process_stays(tmp_path):
    jobs = [
        Job("slow", time.sleep, partial(tuple, (60,))),
        Job("wrong", fail, partial(tuple, ("lower lr",))),
        Job("never", names_in, partial(tuple, (tmp_path, "x")), after=("wrong",)),
    ]
    start = time.monotonic()
    with pytest.raises(RecipeError, match=r"^lower lr$"):
        list(run_jobs(jobs, 2))
    while multiprocessing.active_children() and time.monotonic() < start + 30:
        time.sleep(0.05)
    assert not multiprocessing.active_children()
    assert not list(tmp_path.iterdir())


def test_a_killed_process_is_said_in_one_line():
    jobs = [Job("a", die, tuple), Job("b", double, partial(tuple, (2,)))]
    with pytest.raises(RecipeError, match=r"a training process was killed.*fewer --workers than 2") as caught:
        list(run_jobs(jobs, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_parent_that_is_killed(tmp_path, how):
    start = """if __name__ == "__main__":
        import sys
        from functools import partial
        from pathlib import Path
        from tests.train.toy_jobs import stay
        from s2ap_train.jobs import Job, run_jobs
        folder = Path(sys.argv[1])
        list(run_jobs([Job(name, stay, partial(tuple, (folder,))) for name in "ab"], 2))
    """
    script = tmp_path / "start.py"
    script.write_text(start)
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    folder = tmp_path / "workers"
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(folder)], env=os.environ | path)
    deadline = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(file.name) for file in folder.iterdir()]
    assert len(workers) == 2
    parent.send_signal(how)
    parent.wait()
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_jobs_that_wait_for_one_another_or_share_a_name_are_our_own_bug():
    knot = [Job("a", double, partial(tuple, (1,)), after=("b",)), Job("b", double, partial(tuple, (1,)), after=("a",))]
    with pytest.raises(ValueError, match="jobs wait for one another: a, b"):
        list(run_jobs(knot, 1))
    with pytest.raises(ValueError, match="the same name"):
        list(run_jobs([Job("a", double, tuple), Job("a", double, tuple)], 1))


def test_there_are_no_more_workers_than_jobs_and_never_none():
    assert [worker_count(4, jobs) for jobs in (0, 1, 3, 9)] == [1, 1, 3, 4]
    assert worker_count(None, 1) == 1
    assert list(run_jobs([], 4)) == []
    with pytest.raises(RecipeError, match="workers is 0; give a number from 1, or ray"):
        check_workers(0)


def test_tensors_travel_as_bytes_so_that_no_server_of_shared_memory_is_left_to_break_off():
    sent = {name: torch.arange(4.0) + place for place, name in enumerate("ab")}
    jobs = [Job(name, shared_and_doubled, partial(tuple, (tensor,))) for name, tensor in sent.items()]
    for job, (shared, doubled) in run_jobs(jobs, 2):
        assert not shared
        assert not doubled.is_shared()
        assert not sent[job.name].is_shared()
        assert torch.equal(doubled, 2 * sent[job.name])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is handed out by another C library than glibc")
@pytest.mark.parametrize("workers", [1, 2])
def test_large_blocks_of_memory_that_were_freed_are_used_again(workers):
    jobs = [Job(name, page_faults, partial(tuple, (64, 10))) for name in "ab"]
    pages_of_one = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert all(faults < pages_of_one for _, faults in run_jobs(jobs, workers))
