"""Finds run folders and says whether their figures may stand in one table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2ap_defend.errors import RecipeError
from s2ap_train.commands.compare.measures import check_metrics
from s2ap_train.storage.checkpoint import RECORD_FILE
from s2ap_train.storage.run_folder import METRICS_FILE, RunFolder, read_run


def find_runs(folders: Sequence[Path]) -> tuple[RunFolder, ...]:
    """Read run folders, and those below folders that are none, hashes verified; a folder named twice counts once.

    Hidden folders are not searched.

    Raises:
        RecipeError: If a folder is missing, is no run and holds none, a file was changed, the run was not measured, or
            the metrics lack what a comparison needs or hold it with another type.
    """
    found: dict[Path, RunFolder] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RecipeError(
                f"{folder} is {'a file' if folder.exists() else 'not there'}; give folders that `s2ap-defend prune` "
                "wrote, or a folder that holds them"
            )
        candidates = [folder] if (folder / RECORD_FILE).is_file() else list(_below(folder))
        if not candidates:
            raise RecipeError(f"{folder} holds no run; give folders that `s2ap-defend prune` wrote")
        for candidate in candidates:
            if candidate.resolve() not in found:
                found[candidate.resolve()] = run = read_run(candidate)
                if not run.measured:
                    raise RecipeError(f"{candidate} holds a network that is not measured yet; run prune again")
                check_metrics(run)
    return tuple(found.values())


def check_comparable(runs: Sequence[RunFolder]) -> None:
    """Refuse to put figures of different data, or of different attacks, into one table.

    The seeds of attacks may differ: they follow the seeds of the runs.

    Raises:
        RecipeError: That says which runs differ in what.
    """
    first = runs[0]
    for run in runs[1:]:
        if label(run.metrics["data"]) != label(first.metrics["data"]):
            raise RecipeError(
                f"{first.folder} is of data {label(first.metrics['data'])}, {run.folder} of "
                f"{label(run.metrics['data'])}; figures of different images do not compare: give runs of one data set"
            )
        differing = differences(_attack(first), _attack(run))
        if differing:
            raise RecipeError(
                f"{first.folder} and {run.folder} were attacked differently ({described(differing)}); robust "
                "accuracies of different attacks do not compare: give runs of one attack, or prune with the same"
            )


def label(value: object) -> str:
    """A data set or network as one short text: its name, and what else it says but where it lies."""
    if isinstance(value, Mapping):
        own = next((key for key in ("name", "factory", "source") if value.get(key)), None)
        name = "" if own is None else str(value[own])
        extras = ", ".join(
            f"{key} {_short(entry)}"
            for key, entry in sorted(value.items())
            if key not in (own, "root") and entry is not None
        )
        return f"{name} ({extras})" if name and extras else name or extras
    return str(value)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration with dotted keys."""
    entries: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            entries |= flat(value, f"{prefix}{key}.")
        else:
            entries[f"{prefix}{key}"] = value
    return entries


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, with both; a missing key is None."""
    keys = sorted(first.keys() | second.keys())
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def described(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences as text: `eps 0.1 and 0.2, steps 10 and 20`."""
    return ", ".join(f"{key} {_short(a)} and {_short(b)}" for key, (a, b) in differing.items())


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        if RECORD_FILE in files:
            folders.clear()  # what is inside a run or checkpoint belongs to it
            if METRICS_FILE in files:
                yield Path(parent)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _attack(run: RunFolder) -> dict[str, Any]:
    return {key: value for key, value in flat(run.metrics["attack"]).items() if key.split(".")[-1] != "seed"}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
