"""How many images a key may ask about: a token bucket."""

import math
import time
from collections.abc import Callable

from s2ap_defend.serve.errors import RateLimitError, TooLargeError

__all__ = ["Allowance"]


class Allowance:
    """A token bucket that is full at first.

    Args:
        images_per_second: What flows into it.
        burst: What it holds.
        clock: Seconds.
    """

    def __init__(self, images_per_second: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = images_per_second
        self._burst = burst
        self._clock = clock
        self._left = float(burst)
        self._at_s = clock()

    def check(self, images: int) -> None:
        """Check that a request for so many images may come now.

        Raises:
            TooLargeError: If it may never come.
            RateLimitError: If it comes too early; when to try again is in its headers.
        """
        if images > self._burst:
            raise TooLargeError(f"the request has {images} images, this key may ask about {self._burst} at once")
        now_s = self._clock()
        self._left = min(float(self._burst), self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if images > self._left:
            wait_s = (images - self._left) / self._rate
            raise RateLimitError(
                f"this key may ask about {self._rate:g} images a second; try again in {math.ceil(wait_s)} s", wait_s
            )

    def take(self, images: int) -> None:
        """Take what a checked request has."""
        self._left -= images
