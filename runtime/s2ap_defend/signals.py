"""Signals that have a meaning for a server, and what they do before it serves."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SIGNALS", "has_terminal", "requests_ignored"]

SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGQUIT", "SIGHUP", "SIGUSR1")  # those that the system has


def has_terminal() -> bool:
    """Whether it was started from a terminal, whose end SIGHUP is then."""
    return sys.stdin is not None and sys.stdin.isatty()


@contextmanager
def requests_ignored() -> Iterator[None]:
    """Ignore what only asks a server for something, to read its files again (SIGHUP) or to say what it does (SIGUSR1).

    It would end a process that is about to serve, and a supervisor takes an end by SIGHUP for one that is wanted. What
    handles these signals within the context goes on to do so. Nothing happens but on the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [
        name for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name) and not (name == "SIGHUP" and has_terminal())
    ]
    before = {name: signal.signal(getattr(signal, name), signal.SIG_IGN) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
