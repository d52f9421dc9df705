"""Functions that resumable jobs in other processes can call by name."""

import os
from pathlib import Path

import numpy as np

from s2ap_train.jobs import Found

SHAPE = (2, 1, 2, 2)


def filled(value: float, log: Path) -> Found:
    """Images of one value; every call leaves a line."""
    with log.open("a") as file:
        file.write(f"{value:g}\n")
    return Found(np.full(SHAPE, value, dtype=np.float32), {"value": value, "process": os.getpid()})


def broken(value: float, log: Path) -> Found:
    """A job that fails."""
    filled(value, log)
    raise RuntimeError("planted")
