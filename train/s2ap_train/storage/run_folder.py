"""Run folders: what `prune` leaves of one run, for people, for `compare` and for whoever goes on with the network.

folder/
    checkpoint.json         format, hash of every file, record (architecture, so that the network can be rebuilt)
    weights.safetensors     the pruned, fine-tuned network
    masks.safetensors       by weight or channel group; True = kept
    scores.safetensors      importance scores behind the masks
    config.json             everything that was asked for
    metrics.json            everything that was measured
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_train.storage.checkpoint import (
    WEIGHTS_FILE,
    json_bytes,
    read_folder,
    tensor_bytes,
    tensors_of,
    write_folder,
)

MASKS_FILE = "masks.safetensors"
SCORES_FILE = "scores.safetensors"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
METRICS_VERSION = 1


@dataclass(frozen=True)
class RunFolder:
    """One pruning run.

    Attributes:
        folder: Where it was read from.
        weights: State of the network, by name.
        masks: bool, by name of the weight or channel group.
        scores: float32, by the same names.
        config: What was asked for, JSON values.
        metrics: What was measured, JSON values.
        record: `architecture` rebuilds the network (`s2ap_train.models.build`); `measured` is false where the network
            was stored but not measured yet, as it is before every measure.
    """

    folder: Path
    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def measured(self) -> bool:
        """Whether `metrics` holds accuracies and all that is measured of the network."""
        return self.record.get("measured") is not False


def write_run(
    folder: Path,
    *,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    """Write a run folder whole, replacing a run that is there. Arguments as the fields of `RunFolder`.

    Raises:
        RecipeError: If something is not JSON, or the folder holds something else.
    """
    files = {
        WEIGHTS_FILE: tensor_bytes(weights),
        MASKS_FILE: tensor_bytes(masks),
        SCORES_FILE: tensor_bytes(scores),
        CONFIG_FILE: json_bytes(config, f"the configuration of {folder}"),
        METRICS_FILE: json_bytes({"format_version": METRICS_VERSION, **metrics}, f"the metrics of {folder}"),
    }
    write_folder(folder, files, {**record, "kind": "run"})


def read_run(folder: Path) -> RunFolder:
    """Read a run folder and verify the hash of every file.

    Raises:
        RecipeError: If it is not a run folder, a file is missing or was changed, its configuration or metrics are no
            table in JSON, or its metrics have another version.
    """
    files, record = read_folder(folder)
    if record.get("kind") != "run":
        raise RecipeError(f"{folder} is a checkpoint but not a run; give a folder that `s2ap-defend prune` wrote")
    metrics = _table(folder, METRICS_FILE, files)
    if metrics.get("format_version") != METRICS_VERSION:
        raise RecipeError(
            f"{folder / METRICS_FILE} has version {metrics.get('format_version')!r}, this version reads "
            f"{METRICS_VERSION}; run prune again"
        )
    return RunFolder(
        folder=folder,
        weights=tensors_of(folder, WEIGHTS_FILE, files),
        masks=tensors_of(folder, MASKS_FILE, files),
        scores=tensors_of(folder, SCORES_FILE, files),
        config=_table(folder, CONFIG_FILE, files),
        metrics=metrics,
        record=record,
    )


def _table(folder: Path, name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The table of one JSON file of a run."""
    if name not in files:
        raise RecipeError(f"{folder} has no {name}, only {', '.join(sorted(files)) or 'nothing'}; run prune again")
    try:
        document = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{folder / name} is not JSON ({error}); run prune again") from error
    if not isinstance(document, dict):
        raise RecipeError(
            f"{folder / name} holds a {type(document).__name__}, expected a table of keys and values; run prune again"
        )
    return document
