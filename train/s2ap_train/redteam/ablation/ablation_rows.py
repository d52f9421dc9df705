"""The rows of the ablation: what a model file and the networks it is compared with give, opened and timed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.model_file import ModelFile
from s2ap_defend.stages import CLASSIFIER, cut_stage
from s2ap_defend.types import Float32
from s2ap_train.redteam.ablation.chains import ChainSystem, OpenedFile, chain_target, network_target
from s2ap_train.redteam.target import Target, defended_target, opened

__all__ = [
    "ABLATION_VERSION",
    "ADVERSARIAL",
    "BARE",
    "DETECTOR",
    "FULL",
    "PRUNED",
    "PURIFIER",
    "VOTE",
    "WIDER",
    "Row",
    "milliseconds",
    "open_row",
    "rows_of",
    "served_row",
]

ABLATION_VERSION = 1
"""Raise it with every change of what a row or its attack is: what was found under another number is found again."""
BARE, ADVERSARIAL, PRUNED, WIDER = "undefended", "adversarially trained", "S2AP-pruned", "wider, same compute"
PURIFIER, DETECTOR, VOTE = "purifier only", "detector only", "vote only"
FULL = {False: "full, reject", True: "full, correct"}
"""Names of the two rows of the whole chain, by whether flagged images are corrected."""
_NOTES = {
    DETECTOR: "the members see the image as it is; the file's alarm boundary was calibrated behind the purifier",
    VOTE: "classifier and all members have one vote each on every image, none is ever flagged",
    WIDER: "trained as the adversarial one, its learning rate divided by the factor of the width; not tuned further",
}
_TIMED = 64  # images
_NOT_SERVED = (
    "what is flagged, and so what the attacker wins, is as in the served file; timed as stages one after the other"
)


@dataclass(frozen=True)
class Row:
    """One row, as it travels to other processes.

    Attributes:
        name: Of the row.
        model: The defended model file.
        stage: A serialised network `image` -> `log_probabilities`, for rows that are single networks.
        note: What a reader must know of it.
        same_as: The row whose images break this one exactly where they break that one; it is not attacked itself.
    """

    name: str
    model: Path
    stage: bytes | None = None
    note: str = ""
    same_as: str | None = None

    @property
    def decides(self) -> tuple[object, ...]:
        """What, other than the file, decides what is found for it; JSON values."""
        digest = None if self.stage is None else hashlib.sha256(self.stage).hexdigest()
        return self.name, digest


def rows_of(model: Path, networks: Mapping[str, ModelProto]) -> tuple[Row, ...]:
    """The rows that a file and other networks give, least defended first.

    Without a purifier in the file there is no row of it alone.

    Args:
        model: The defended model file.
        networks: Exported classifiers `image` -> `log_probabilities` by the name of their row: ADVERSARIAL, PRUNED,
            WIDER, as far as they are there.

    Raises:
        ModelFileError: If the file cannot be used.
    """
    file = opened(model)
    served = served_row(file)
    stages = {BARE: cut_stage(file.proto, CLASSIFIER), **networks}
    chains = [PURIFIER, DETECTOR, VOTE][1 if file.manifest.purifier.off else 0 :]
    whole = [
        Row(name, model) if name == served else Row(name, model, note=_NOT_SERVED, same_as=served)
        for name in FULL.values()
    ]
    return (
        *(Row(name, model, stages[name].SerializeToString()) for name in (BARE, ADVERSARIAL, PRUNED) if name in stages),
        *(Row(name, model, note=_NOTES.get(name, "")) for name in chains),
        *whole,
        *(Row(name, model, stages[name].SerializeToString(), _NOTES[name]) for name in (WIDER,) if name in stages),
    )


def served_row(file: ModelFile) -> str:
    """Name of the row that is the file as it is served."""
    return FULL[file.manifest.test.to_test().correct]


def open_row(row: Row) -> Target:
    """The target of a row.

    Raises:
        ModelFileError: If the file or the stage cannot be used.
    """
    if row.stage is not None:
        return network_target(row.name, onnx.load_from_string(row.stage))
    stages = _stages(row.model, row.model.stat().st_mtime_ns)
    if row.name == served_row(stages.file):
        return replace(defended_target(stages.file, row.model, stages.twin), name=row.name)
    return chain_target(row.name, stages)


def milliseconds(row: Row, images: Float32) -> float:
    """Time of one image alone, on one thread of ONNX Runtime: the median over up to 64 images of the best of three.

    The served file is timed whole, every other row as its stages one after the other.
    """
    system, rows = open_row(row).system, images[:_TIMED]
    if isinstance(system, ChainSystem):
        return system.milliseconds(rows)
    classifier = DefendedClassifier.load(row.model, device="cpu", threads=1)
    return 1e3 * float(
        np.median([min(_seconds(classifier, rows[i : i + 1]) for _ in range(3)) for i in range(len(rows))])
    )


@lru_cache(maxsize=1)
def _stages(model: Path, changed: int) -> OpenedFile:  # noqa: ARG001
    """The stages of the file, once a process as long as it does not change."""
    return OpenedFile.of(opened(model))


def _seconds(classifier: DefendedClassifier, image: Float32) -> float:
    began = time.perf_counter()
    classifier(image)
    return time.perf_counter() - began
