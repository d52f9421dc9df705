"""Seconds of each phase of a run, kept on disk, so that a resumed run still says what the whole took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from s2ap_defend.files import replace_file

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Called with the number of an epoch, from 0, and its record."""


class Stopwatch:
    """Adds up seconds by phase; time between the last lap and a kill is lost, as its epoch is.

    Args:
        path: File of the sums; None keeps none.
        settings: What they belong to; sums of other settings are dropped.
    """

    def __init__(self, path: Path | None, settings: str) -> None:
        self._path, self._settings = path, settings
        self._seconds = _read(path, settings)
        self._since = time.perf_counter()

    def seconds(self, phase: str) -> float | None:
        """Sum of a phase; None if it never ran."""
        return self._seconds.get(phase)

    def start(self) -> None:
        """Time up to now belongs to no phase."""
        self._since = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase and keep the sums."""
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps({"settings": self._settings, "seconds": self._seconds}).encode())

    def clear(self) -> None:
        """Remove the file: the run is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def timed(self, phase: str, hook: OnEpoch) -> OnEpoch:
        """The hook, with a lap before every call."""

        def lap_and_call(epoch: int, record: Mapping[str, float]) -> None:
            self.lap(phase)
            hook(epoch, record)

        return lap_and_call


def _read(path: Path | None, settings: str) -> dict[str, float]:
    try:
        found = json.loads(path.read_bytes()) if path is not None else {}
        if found["settings"] == settings:
            return {str(name): float(value) for name, value in found["seconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # sums that cannot be read are not known: they start anew
    return {}
