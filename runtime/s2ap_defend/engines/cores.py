"""How many CPU cores this process may use: those of its affinity, within the quota of its control groups."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["operator_threads", "usable_cores"]


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy, at least 1.

    Args:
        root: Where `proc` and `sys` are.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = os.cpu_count() or 1 if affinity is None else len(affinity(0))
    return max(1, min([cores, *(math.ceil(share) for share in _quotas(root))]))


def operator_threads() -> int:
    """Threads inside one operator where nobody asks for a number: usable cores, within OMP_NUM_THREADS.

    The first number of the variable's list, as OpenMP reads it; ONNX Runtime itself does not.
    """
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(usable_cores(), int(said)) if said.isdecimal() and int(said) else usable_cores()


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each control group above this process grants, of version 2 or 1, where it limits them."""
    groups = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = groups / controllers if controllers else groups
        own = base / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder == groups.parent:
                break
            if controllers:
                quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            else:
                quota, _, period = _read(folder / "cpu.max").partition(" ")
            if quota.isdigit() and period.isdigit() and int(period):
                yield int(quota) / int(period)


def _read(path: Path) -> str:
    """The text of a file; empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
