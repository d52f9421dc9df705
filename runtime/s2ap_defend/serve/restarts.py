"""When an engine that failed is started again: soon at first, ever later, and not without end."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from s2ap_defend.errors import DefendError

__all__ = ["MOST_FAILURES", "Restarts"]

logger = logging.getLogger(__name__)

FIRST_S, LONGEST_S = 0.5, 60.0
MOST_FAILURES = 6  # in a row, after which it is started again
STEADY_S = 300.0  # an engine that has answered so long begins a new row


class Restarts:
    """Counts failures in a row.

    Args:
        clock: Seconds.

    Attributes:
        failures: How many there were.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = 0
        self._clock = clock
        self._ready_since_s: float | None = None

    def ready(self) -> None:
        """It answers again."""
        self._ready_since_s = self._clock()

    def failed(self) -> float | None:
        """It failed, or could not be started: seconds to wait before the next start, None where there is none."""
        if self._ready_since_s is not None and self._clock() - self._ready_since_s > STEADY_S:
            self.failures = 0
        self._ready_since_s = None
        self.failures += 1
        return None if self.failures > MOST_FAILURES else min(FIRST_S * 2.0 ** (self.failures - 1), LONGEST_S)

    async def revive(self, name: str, start: Callable[[], Awaitable[None]], error: DefendError) -> DefendError | None:
        """Start the engine of a model, which failed with this error, until it answers.

        Returns:
            None, or the last error where that is given up.
        """
        while (wait_s := self.failed()) is not None:
            await asyncio.sleep(wait_s)
            try:
                await start()
            except DefendError as failure:
                logger.error("the engine of model %s could not be started: %s", name, failure)
                error = failure
            else:
                return None
        return error
