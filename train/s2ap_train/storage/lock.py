"""Locks between runs that share a work folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s2ap_defend.errors import RecipeError

__all__ = ["locked", "locked_folder"]


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
        raise RecipeError(f"{path} cannot be written ({error.strerror}); choose another work folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise RecipeError(
                f"another process is working in {path.parent}; wait for it, or choose another work folder"
            ) from error
        yield


@contextmanager
def locked_folder(work_dir: Path) -> Iterator[None]:
    """Keep other runs out of a work folder within this context; for the process that leads a run, not its workers.

    Raises:
        RecipeError: If another run, be it of another command, works in it, or the folder cannot be written.
    """
    with locked(work_dir / ".lock", wait=False):
        yield
