"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_LINE_EVERY_S = 15.0
"""Seconds between plain lines within one step, where there is no terminal."""


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
        self._last_line = time.monotonic()
        self.note = ""

    def advance(self, note: str = "", *, done: int | None = None) -> None:
        """Count one unit (or set the count to `done`) and show what was measured."""
        self._done = self._done + 1 if done is None else done
        self.note = note or self.note
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=self._done, note=self.note)
        elif time.monotonic() - self._last_line >= self._reporter.line_every_s:
            self._last_line = time.monotonic()
            self._reporter.line(f"  {self._title}: {self._done}/{self._total} {self.note}".rstrip())


class Reporter:
    """Prints what long work does.

    Args:
        console: Where to print; a bar is drawn when it is a terminal.
        line_every_s: Seconds between plain lines within one step, where there is no terminal.
    """

    def __init__(self, console: Console | None = None, *, line_every_s: float = PLAIN_LINE_EVERY_S) -> None:
        self.console = console or Console()
        self.line_every_s = line_every_s

    def line(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, title: str, total: int) -> Iterator[Step]:
        """Show one step of `total` units and, when it ends, its time and last note."""
        started = time.monotonic()
        if self.console.is_terminal:
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
            ) as progress:
                step = Step(self, title, total, (progress, progress.add_task(title, total=total, note="")))
                yield step
        else:
            step = Step(self, title, total)
            yield step
        self.line(f"{title}: {time.monotonic() - started:.1f} s  {step.note}".rstrip())
