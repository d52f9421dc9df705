"""The log of a server: text or JSON, written by a thread of its own, so that a full pipe holds nobody up."""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import orjson

from s2ap_defend.serve.exchange import current_id

__all__ = ["LogFormat", "QueuedHandler", "written_log"]

LogFormat = Literal["text", "json"]

MOST_RECORDS = 10_000  # that wait to be written
GATHER_S = 0.01  # between two looks: waking a thread for every record costs more than writing it
FLUSH_S = 1.0  # for what waits when the server stops
TEXT = "%(asctime)s %(levelname)s %(message)s"


class TextFormatter(logging.Formatter):
    """One line a record, and the traceback behind it; with the id of the request where it is about one."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's
        """The line."""
        line = super().formatMessage(record)
        name = getattr(record, "request_id", None)
        return line if name is None else f"{line} request_id={name}"


class JsonFormatter(logging.Formatter):
    """One JSON object a record, on one line: time (UTC), level, message, request_id, exception, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        name = getattr(record, "request_id", None)
        if name is not None:
            line["request_id"] = name
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class QueuedHandler(logging.Handler):
    """Hands records to a thread that formats and writes them; what finds the queue full is dropped and counted.

    Args:
        write: Writes a whole line, and may take as long as it likes.
        most: Records that may wait.

    Attributes:
        dropped: Records that were dropped.
        on_drop: Called for each of them.
    """

    def __init__(self, write: Callable[[bytes], object], most: int = MOST_RECORDS) -> None:
        super().__init__()
        self.dropped = 0
        self.on_drop: Callable[[], None] | None = None
        self._write_line = write
        self._told = 0
        self._most = most
        self._closing = False
        self._records: deque[logging.LogRecord] = deque()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._work, name="s2ap-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; never waits."""
        if not hasattr(record, "request_id"):
            record.request_id = current_id()
        if len(self._records) >= self._most:
            self._drop()
            return
        self._records.append(record)
        if not self._woken.is_set():
            self._woken.set()

    def finish(self, timeout_s: float = FLUSH_S) -> None:
        """Write what waits; what cannot be written in time is left behind."""
        self._closing = True
        self._woken.set()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while not self._closing or self._records:
            self._woken.wait()
            self._woken.clear()
            while self._records:
                self._write(self._records.popleft())
            if not self._closing:
                time.sleep(GATHER_S)

    def _drop(self) -> None:
        self.dropped += 1
        if self.on_drop is not None:
            self.on_drop()

    def _write(self, record: logging.LogRecord) -> None:
        try:
            lost = self.dropped - self._told
            if lost:
                self._told += lost
                said = f"{lost} records of this log were dropped, because nobody read it fast enough"
                self._write_line(self._line(logging.LogRecord(__name__, logging.WARNING, "", 0, said, (), None)))
            self._write_line(self._line(record))
        except Exception:  # the reader is gone, the disk is full, a message does not fit its arguments
            self._told += 1
            self._drop()

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode("utf-8", "backslashreplace")


@contextmanager
def written_log(kind: LogFormat) -> Iterator[QueuedHandler | None]:
    """Write the log of this process to standard error while the context is open; None where it has handlers already."""
    root = logging.getLogger()
    if root.handlers:
        yield None
        return
    handler = QueuedHandler(_write_stderr)
    handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.finish()


def _write_stderr(line: bytes) -> None:
    """Past Python's buffer, whose lock would hold up the end of the process."""
    left = memoryview(line)
    while left:
        left = left[os.write(sys.stderr.fileno(), left) :]
