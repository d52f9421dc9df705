"""What every benchmark prints: tables in Markdown, and the machine that it ran on."""

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import torch


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table in Markdown, columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpu.read_text()) if cpu.exists() else None
    name = model[1] if model else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": name, "cores": os.cpu_count(), "gpu": gpu, "torch": torch.__version__}
