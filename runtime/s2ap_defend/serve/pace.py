"""How long what waits will take, from how long what ran took."""

from itertools import pairwise

__all__ = ["Pace"]

HELD_UP = 2.0
DECAY = 0.8  # of what was seen before, at every batch of about the same size


class Pace:
    """Running means of the time from handing a batch over to its answer, for every power of two of rows.

    Nothing is known before the first batch; until then everything is expected to be instant.

    Args:
        max_rows: Rows that run at a time.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._seen: dict[int, tuple[float, float]] = {}  # by power of two: weighted mean of rows, and of seconds
        self._points: list[tuple[float, float]] | None = []  # the same by rows; None: to be sorted

    def observe(self, rows: int, seconds: float) -> None:
        """Take in that `rows` together took so many seconds; a batch that something held up does not count in full."""
        power = rows.bit_length()
        mean_rows, mean_s = self._seen.get(power, (float(rows), seconds))
        seconds = min(seconds, HELD_UP * mean_s)
        self._seen[power] = (
            DECAY * mean_rows + (1.0 - DECAY) * rows,
            DECAY * mean_s + (1.0 - DECAY) * seconds,
        )
        self._points = None

    def batch_s(self, rows: int) -> float:
        """Seconds that a batch of so many rows is expected to take: linear between those that were seen.

        Beyond the largest one it is proportional to rows, below the smallest one as long as that.
        """
        if self._points is None:
            self._points = sorted(self._seen.values())
        points = self._points
        if not points:
            return 0.0
        if rows <= points[0][0]:
            return points[0][1]
        for (fewer, less_s), (more, more_s) in pairwise(points):
            if rows <= more:
                return less_s + (more_s - less_s) * (rows - fewer) / (more - fewer)
        most, longest_s = points[-1]
        return longest_s * rows / most

    def total_s(self, rows: int) -> float:
        """Seconds that so many rows are expected to take, in batches as large as they may be."""
        full, rest = divmod(rows, self._max_rows)
        return full * self.batch_s(self._max_rows) + (self.batch_s(rest) if rest else 0.0)
