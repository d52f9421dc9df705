"""Whether a lone image may be answered on the event loop, where nothing else happens meanwhile.

To hand an image to another thread and back costs more processor time than all else that the server does for it. A model
that takes little longer than that is better asked where the request is. A slow one must not be: health checks, other
models and all connections would wait as long.
"""

import logging
import math
from collections.abc import Sequence

__all__ = ["BOUND_S", "LATE_S", "PAUSE_S", "Quickness"]

logger = logging.getLogger(__name__)

BOUND_S = 0.002  # an image takes less; health checks are to be answered within .05
LATE_S = 0.02  # once is too often
FORGOTTEN = 0.9  # of the images beyond the bound, at every image
MOST = 2.7  # of these that are remembered: three in a row, or a third of all
PAUSE_S = 60.0


class Quickness:
    """Is measured before the model is ready, and looked after while it serves.

    When one takes far longer than the bound, or several in a row take longer, none is answered there for a minute:
    neither a machine that has become slow nor a client whose images need every member holds the loop up for long.
    """

    def __init__(self) -> None:
        self._slowest_s: float | None = None
        self._beyond = 0.0
        self._paused_until_s = -math.inf

    def measure(self, seconds: Sequence[float]) -> bool:
        """Take in how long runs of one image took of a model that is warm, with every stage; whether it may be quick.

        The least counts of an image, which other processes have held up least, and the slowest of all images.
        """
        self._slowest_s = max(self._slowest_s or 0.0, min(seconds))
        return self._slowest_s < BOUND_S

    def allows(self, now_s: float) -> bool:
        """Whether a lone image may be, `now_s` by the clock of the event loop; never without a measurement."""
        return self._slowest_s is not None and self._slowest_s < BOUND_S and now_s >= self._paused_until_s

    def observe(self, seconds: float, now_s: float) -> None:
        """Take in what one took there."""
        self._beyond *= FORGOTTEN
        if seconds <= BOUND_S:
            return
        self._beyond += 1.0
        if seconds > LATE_S or self._beyond > MOST:
            self._beyond, self._paused_until_s = 0.0, now_s + PAUSE_S
            logger.info("an image took %.1f ms; for %g s lone images have the device's thread", 1e3 * seconds, PAUSE_S)
