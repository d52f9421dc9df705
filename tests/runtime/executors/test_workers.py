import threading
import time

import pytest

from s2ap_defend.executors.workers import Workers


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_task_runs_once(threads: int) -> None:
    done: list[int] = []
    workers = Workers(threads)
    for count in (0, 1, 2, 9):
        workers.run([lambda i=i: done.append(i) for i in range(count)])
        assert sorted(done) == list(range(count))
        done.clear()


def test_tasks_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=10)
    Workers(2).run([both.wait, both.wait])


def test_a_failure_is_raised_where_it_was_asked_for_and_what_was_left_does_not_run() -> None:
    def fail() -> None:
        raise ValueError("broken")

    left: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        Workers(1).run([fail, lambda: left.append(1)])
    assert not left
    with pytest.raises(ValueError, match="broken"):
        Workers(3).run([lambda: time.sleep(0.02), fail, fail])


def test_who_asks_while_all_threads_are_busy_does_the_work_alone() -> None:
    workers, busy, go = Workers(2), threading.Barrier(3, timeout=10), threading.Event()

    def hold() -> None:
        busy.wait()
        go.wait(10)

    first = threading.Thread(target=workers.run, args=([hold, hold],))
    first.start()
    busy.wait()  # the only other thread is held
    done: list[int] = []
    workers.run([lambda i=i: done.append(i) for i in range(5)])
    assert sorted(done) == list(range(5))
    go.set()
    first.join()
