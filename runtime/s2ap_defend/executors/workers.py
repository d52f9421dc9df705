"""Work shared between the calling thread and idle ones."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

__all__ = ["Task", "Workers"]

Task = Callable[[], None]


class Workers:
    """Runs tasks on the calling thread and on others that are idle; several callers may share it.

    Nobody waits for a thread that is busy elsewhere: who calls does what is left.

    Args:
        threads: How many tasks of one caller run at a time, at least 1.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._others = ThreadPoolExecutor(threads - 1, thread_name_prefix="s2ap-stage") if threads > 1 else None

    def run(self, tasks: Sequence[Task]) -> None:
        """Run tasks, the first ones first, and return when all are done; raises what one of them raised."""
        left = deque(tasks)
        if self._others is None or len(left) < 2:
            _drain(left)
            return
        helping: list[Future[None]] = []
        with suppress(RuntimeError):  # the interpreter is ending, and starts no more threads
            helping += [self._others.submit(_drain, left) for _ in range(min(self.threads, len(left)) - 1)]
        try:
            _drain(left)
        finally:
            left.clear()
            begun = [one for one in helping if not one.cancel()]
            failures = [one.exception() for one in begun]
        for failure in filter(None, failures):
            raise failure


def _drain(left: deque[Task]) -> None:
    while True:
        try:
            task = left.popleft()
        except IndexError:
            return
        task()
