"""Work that other processes do in the tests of jobs; they start without torch where it needs none."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from s2ap_defend.errors import RecipeError

if TYPE_CHECKING:
    import torch


def double(number: int) -> int:
    return 2 * number


def fail(text: str) -> int:
    raise RecipeError(text)


def die() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def page_faults(megabytes: int, times: int) -> int:
    """Pages that had to be mapped to write that much memory, freed after each time, once it was had."""
    import numpy as np

    def written() -> int:
        for _ in range(times):
            np.empty(megabytes << 20, dtype=np.uint8).fill(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    return -written() + written()


def stay(folder: Path) -> int:
    """Say who works here, then work for a minute."""
    (folder / str(os.getpid())).touch()
    time.sleep(60)
    return 0


def names_in(folder: Path, name: str) -> list[str]:
    """The names of the files in a folder, after adding one."""
    (folder / name).touch()
    return sorted(path.name for path in folder.iterdir())


def shared_and_doubled(tensor: torch.Tensor) -> tuple[bool, torch.Tensor]:
    """Whether a tensor came here as shared memory, and twice the tensor."""
    return tensor.is_shared(), 2 * tensor
