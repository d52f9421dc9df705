"""What every benchmark prints: tables in Markdown, and the machine that it ran on."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from s2ap_defend.bench.machine import describe_machine
from s2ap_train.statistics.paired import PairedDifference

DECIMALS = 5
"""Of the numbers in files."""


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table in Markdown, columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]


def points(effect: Mapping[str, Any] | None) -> str:
    """A paired difference of shares as its JSON values: in points, with its interval, images and p; None: '-'."""
    if effect is None:
        return "-"
    low, high = (100 * end for end in effect["interval"])
    p_value, rounded_away = effect["p_value"], effect["p_value"] < 10**-DECIMALS
    return (
        f"{100 * effect['difference']:+.1f} ({low:+.1f} to {high:+.1f}), +{effect['gained']} -{effect['lost']}, "
        f"p {f'< 1e-{DECIMALS}' if rounded_away else f'{p_value:.2g}'}"
    )


def paired(values: Mapping[str, Any]) -> PairedDifference:
    """A paired difference from its JSON values."""
    fields = {name: values[name] for name in PairedDifference.__dataclass_fields__}
    return PairedDifference(**fields | {"interval": tuple(values["interval"])})


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {**describe_machine(), "gpu": gpu, "torch": torch.__version__}


def medians(
    variants: dict[str, Callable[[], object]], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of every variant over alternating rounds, after one round to warm up.

    With the clock `time.process_time`, what runs on one thread is not lengthened by other processes.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            began = clock()
            run()
            if number:
                seconds[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def as_text(document: Mapping[str, Any]) -> str:
    """JSON of five decimals, or three digits where that is more, a line for each key."""
    lines = (f"{json.dumps(key)}: {json.dumps(_rounded(value))}" for key, value in document.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rounded(value: Any) -> Any:  # noqa: ANN401 - JSON values
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    if not isinstance(value, float):
        return value
    return round(value, DECIMALS) if abs(value) >= 10 ** (2 - DECIMALS) else float(f"{value:.3g}")


def data_overrides(data: tuple[Path, ...]) -> list[str]:
    """Overrides of a recipe that say where its data lies."""
    if not data:
        return []
    paths = ", ".join(json.dumps(str(path)) for path in data)
    return [f"data.root=[{paths}]" if len(data) > 1 else f"data.root={paths}"]
