"""How long a connection is idle, by one timer for many requests: each would cost more than to look at the clock."""

import asyncio
from collections.abc import Callable

__all__ = ["Idleness"]


class Idleness:
    """Calls when a connection has been idle for a while.

    Args:
        loop: The event loop of the connection.
        limit_s: Seconds after which it calls.
        on_limit: What it calls.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_s: float, on_limit: Callable[[], None]) -> None:
        self._loop, self._limit_s, self._on_limit = loop, limit_s, on_limit
        self._since_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lasts(self) -> bool:
        """Whether it is idle now."""
        return self._since_s is not None

    def begin(self) -> None:
        """Be idle from now on."""
        self._since_s = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._limit_s, self._look)

    def end(self) -> None:
        """Be idle no more."""
        self._since_s = None

    def close(self) -> None:
        """Never call again."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._since_s is None:
            return  # the next time that it is idle has a timer of its own
        left_s = self._since_s + self._limit_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._on_limit()
