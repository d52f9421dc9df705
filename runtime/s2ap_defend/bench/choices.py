"""What a user chooses, without the libraries that do it."""

from typing import Literal

TrafficKind = Literal["clean", "attacked", "mixed"]
"""Images as they come; mixed are clean and attacked ones in turn."""
Clock = Literal["wall", "processor"]
"""`processor` counts what this process computes: on one thread of a CPU other processes hardly lengthen it."""
