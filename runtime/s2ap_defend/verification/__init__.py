"""What can be found out about a file on this machine before it is relied on."""

from dataclasses import dataclass
from typing import Literal

from s2ap_defend.engines import Device

__all__ = ["Check", "Place", "Verification"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: Of the check.
        state: 'failed': the file must not be relied on. 'noted': it holds, but something is to be known. 'skipped': it
            could not be looked at.
        detail: What was found, in one line.
    """

    name: str
    state: Literal["passed", "noted", "failed", "skipped"]
    detail: str


@dataclass(frozen=True)
class Place:
    """A device, and whether this machine runs the file there.

    Attributes:
        device: As `DefendedClassifier.load` takes it.
        runs: Whether it does.
        detail: How, or why not.
    """

    device: Device
    runs: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """All that was looked at.

    Attributes:
        checks: In the order in which they were made.
        places: Where the file runs here; empty where it could not be opened.
        golden: Whether the images were those of the file; otherwise they were generated.
        images: How many there were.
    """

    checks: tuple[Check, ...]
    places: tuple[Place, ...]
    golden: bool
    images: int

    @property
    def sound(self) -> bool:
        """Whether nothing failed."""
        return all(check.state != "failed" for check in self.checks)
