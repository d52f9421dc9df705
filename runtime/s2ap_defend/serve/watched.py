"""Files that are read again when they change, while the server runs."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from s2ap_defend.errors import DefendError

__all__ = ["Signature", "Watched", "Watcher", "look"]

logger = logging.getLogger(__name__)

POLL_S = 1.0

Signature = tuple[tuple[int, int, int] | None, ...]
"""Of files, by which it shows that one was replaced."""


def look(paths: Sequence[Path]) -> Signature:
    """The signature of files as they are now."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


class Watched:
    """Files that belong together.

    Args:
        what: What is in them, for the log.
        paths: The files; where one is a link, what it leads to is looked at.
        read: Reads them and takes them into use; what it raises leaves what was there before in use. It runs on
            another thread than the server.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], None]) -> None:
        self._what = what
        self._paths = paths
        self._read = read
        self._used = self._seen = look(paths)

    def poll(self) -> None:
        """Read them if they have changed and not since the last look: several files are not replaced at one moment."""
        found = look(self._paths)
        if found != self._used and found == self._seen:
            self.read()
        self._seen = found

    def read(self) -> None:
        """Read them now."""
        self._used = look(self._paths)
        try:
            self._read()
        except DefendError as error:
            logger.error("%s; the former %s stay in use", error, self._what)
        else:
            logger.info("%s read again", self._what)


class Watcher:
    """Looks after files on a thread of its own, which no slow file system can make others wait for.

    Args:
        files: The files.
    """

    def __init__(self, files: Iterable[Watched]) -> None:
        self._files = list(files)
        self._woken = threading.Event()
        self._asked = self._stopped = False

    def start(self) -> None:
        """Begin, if there are files."""
        if self._files:
            threading.Thread(target=self._run, name="s2ap-files", daemon=True).start()

    def read_now(self) -> None:
        """Read all of them soon, whether they have changed or not."""
        self._asked = True
        self._woken.set()

    def stop(self) -> None:
        """End; does not wait."""
        self._stopped = True
        self._woken.set()

    def _run(self) -> None:
        while True:
            self._woken.wait(POLL_S)
            self._woken.clear()
            if self._stopped:
                return
            asked, self._asked = self._asked, False
            for files in self._files:
                if asked:
                    files.read()
                else:
                    files.poll()
