"""Numbers that are measured once and stored in a work folder, so that a second run makes the same file."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from s2ap_defend.files import replace_file

__all__ = ["measured_once"]

_TIMES = TypeAdapter(dict[str, tuple[float, ...]])


def measured_once(file: Path, key: str, measure: Callable[[], Sequence[float]]) -> tuple[float, ...]:
    """What was measured of the same thing before, or is now.

    Args:
        file: Where it is stored, with others; a file of another form is replaced.
        key: Of what is measured.
        measure: Measures it.
    """
    known: dict[str, tuple[float, ...]] = {}
    if file.exists():
        with contextlib.suppress(ValidationError):
            known = _TIMES.validate_json(file.read_bytes())
    if key not in known:
        known[key] = tuple(measure())
        replace_file(file, _TIMES.dump_json(known, indent=2))
    return known[key]
