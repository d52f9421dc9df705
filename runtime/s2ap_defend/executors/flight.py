"""Images that are started and not finished, and whose turn it is."""

from dataclasses import dataclass, field

from s2ap_defend.executors.rows import Rows, joined_rows
from s2ap_defend.types import Float32

__all__ = ["Flight"]


@dataclass
class Flight:
    """Images that were started and are not finished; made by `start`, and used by one thread at a time.

    Attributes:
        number: Of the next image that is started.
        fresh: Images that no stage has seen, with the number of the first.
        waiting: Rows by the step that they wait for.
        newcomers: Whether the latest step was that of fresh images.
    """

    number: int = 0
    fresh: list[tuple[int, Float32]] = field(default_factory=list)
    waiting: dict[int, list[Rows]] = field(default_factory=dict)
    newcomers: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing is left to do."""
        return not self.fresh and not self.waiting

    def join(self, images: Float32) -> None:
        """Let images join; the first of them gets the number `number`."""
        self.fresh.append((self.number, images))
        self.number += len(images)

    def take_fresh(self) -> list[tuple[int, Float32]]:
        """The images that no stage has seen, if it is their turn; none otherwise."""
        self.newcomers = bool(self.fresh) and not (self.newcomers and self.waiting)
        taken: list[tuple[int, Float32]] = []
        if self.newcomers:
            taken, self.fresh = self.fresh, []
        return taken

    def take_waiting(self) -> tuple[int, Rows]:
        """The first step that a row waits for of those that came with the oldest, and who waits for it."""
        oldest = {step: min(int(rows.born.min()) for rows in parts) for step, parts in self.waiting.items()}
        step = min(oldest, key=lambda step: (oldest[step], step))
        return step, joined_rows(self.waiting.pop(step))
