"""Progress of long work: a bar on a terminal, plain lines elsewhere; both say how long it will go on."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

PLAIN_LINE_EVERY_S = 15.0
"""Seconds between plain lines within one step, where there is no terminal."""
SILENT_S = 60.0
"""Seconds after which a step says that it is still at work, though no unit of it has ended."""
_AT_ONCE_S = 0.05  # units that begin with a row of such were done by an earlier run


class Step:
    """One step of long work; `advance` after each unit."""

    def __init__(
        self, reporter: "Reporter", title: str, total: int, bar: tuple[Progress, TaskID] | None = None
    ) -> None:
        self._reporter = reporter
        self._bar = bar
        self._title = title
        self._total = total
        self._done = 0
        self._share = self._share_before = 0.0
        self._units, self._resuming = 0, True
        self._began = self._counted = self._last_unit = self._last_line = reporter.clock()
        self.note = ""

    def advance(self, note: str = "", *, done: int | None = None, share: float | None = None) -> None:
        """Count one unit (or set the count to `done`) and show what was measured and how long the rest will take.

        Args:
            note: What was measured.
            done: Units that are done.
            share: Of the work that is done, where units differ; by default that of the units.
        """
        self._done = self._done + 1 if done is None else done
        self._share = self._done / max(self._total, 1) if share is None else share
        now = self._reporter.clock()
        self._tell_resumed(now)
        self.note = note or self.note
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=self._done, note=self._told(self.note, now))
        elif now - self._last_line >= self._reporter.line_every_s:
            self._line(self.note, now)

    def still_at_work(self) -> None:
        """Say so, where nothing was said for long."""
        now = self._reporter.clock()
        if self._bar is None and now - self._last_line >= SILENT_S:
            self._line(f"still at work after {duration(now - self._began)}", now)

    def _tell_resumed(self, now: float) -> None:
        """Count from the last unit of an earlier run on, which all come at once."""
        if self._resuming and now - self._last_unit < _AT_ONCE_S:
            self._counted, self._share_before = now, self._share
        elif self._units > 0:
            self._resuming = False
        self._units, self._last_unit = self._units + 1, now

    def _line(self, note: str, now: float) -> None:
        self._last_line = now
        self._reporter.line(f"  {self._title}: {self._done}/{self._total} {self._told(note, now)}".rstrip())

    def _told(self, note: str, now: float) -> str:
        """A note, and the time left as far as it can be known: as the last unit ended, less what has passed since."""
        gained = self._share - self._share_before
        if gained <= 0.0 or self._share >= 1.0:
            return note
        left = (self._last_unit - self._counted) * (1.0 - self._share) / gained - (now - self._last_unit)
        if left <= 0.0:
            return note
        return "; ".join(part for part in (note, f"about {duration(left)} left") if part)


class Reporter:
    """Prints what long work does.

    Args:
        console: Where to print; a bar is drawn when it is a terminal.
        line_every_s: Seconds between plain lines within one step, where there is no terminal; infinite: there are none.
        clock: Seconds from any moment on.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        line_every_s: float = PLAIN_LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console()
        self.line_every_s = line_every_s
        self.clock = clock

    def line(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, title: str, total: int) -> Iterator[Step]:
        """Show one step of `total` units and, when it ends, its time and last note."""
        started = self.clock()
        if self.console.is_terminal:
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
                transient=True,
            ) as progress:
                step = Step(self, title, total, (progress, progress.add_task(title, total=total, note="")))
                yield step
        else:
            step = Step(self, title, total)
            with self._watched(step):
                yield step
        self.line(f"{title}: {self.clock() - started:.1f} s  {step.note}".rstrip())

    @contextmanager
    def _watched(self, step: Step) -> Iterator[None]:
        """Let a step say that it is still at work, from a thread of its own, until it ends."""
        if math.isinf(self.line_every_s):
            yield
            return
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(SILENT_S / 2):
                step.still_at_work()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def duration(seconds: float) -> str:
    """Seconds as one reads them: in minutes from a minute and a half on, in hours from an hour and a half on."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
