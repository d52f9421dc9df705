"""Locks between runs that share a work folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s2ap_defend.errors import RecipeError


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock file within this context; the system frees it when the process ends, however it ends.

    Args:
        path: The lock file; it is made, and left there.
        wait: Whether to wait for another process that holds it; otherwise that is refused.

    Raises:
        RecipeError: If another process holds the lock and `wait` is off, or the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # pragma: no cover  (no such locks on Windows)
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise RecipeError(f"{path} cannot be written ({error.strerror}); choose another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise RecipeError(
                f"another process is making the same run in {path.parent}; wait for it, or choose another folder"
            ) from error
        yield
