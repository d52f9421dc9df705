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
from s2ap_defend.stages import CLASSIFIER, cut_stage, member_scope
from s2ap_defend.types import Float32
from s2ap_train.adaptive.goals import Goal
from s2ap_train.redteam.ablation.chains import (
    Chain,
    ChainSystem,
    OpenedFile,
    chain_target,
    corrections,
    network_target,
)
from s2ap_train.redteam.ablation.compute import stage_flops
from s2ap_train.redteam.ablation.names import (
    ADVERSARIAL,
    BARE,
    CONFIDENCE,
    FULL,
    JURY,
    PRUNED,
    UNFLAGGED,
    UNPURIFIED,
    WIDER,
)
from s2ap_train.redteam.target import Target, defended_target, opened

__all__ = ["ABLATION_VERSION", "Row", "cost", "first_juror", "milliseconds", "open_row", "rows_of", "served_row"]

ABLATION_VERSION = 4
"""Raise it with every change of what a row or its attack is: what was found under another number is found again."""
_NOTES = {
    PRUNED: "the first juror of the file, on the image as it came",
    UNPURIFIED: "the file's alarm boundary was calibrated with the purifier",
    WIDER: "trained as the adversarial one, its learning rate divided by the factor of the width; not tuned further",
}
_FLAGGING: tuple[Goal, ...] = ("mislead", "wrong label")
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
        threshold: Probability that the network's largest must reach for an input not to be flagged; None: none is.
        goals: What its attacker wants: where inputs are flagged, a wrong label is another goal than to mislead.
        note: What a reader must know of it.
        same_as: The row whose images break this one exactly where they break that one; it is not attacked itself.
        chain: Which chain of the file it is, as `Chain.of` names them, for rows of several files, whose names say more;
            None: the one of its name.
    """

    name: str
    model: Path
    stage: bytes | None = None
    threshold: float | None = None
    goals: tuple[Goal, ...] = ("mislead",)
    note: str = ""
    same_as: str | None = None
    chain: str | None = None

    @property
    def of_file(self) -> str:
        """Name of its chain in the file."""
        return self.name if self.chain is None else self.chain

    @property
    def decides(self) -> tuple[object, ...]:
        """What decides what is found for it; the file as well where its chain is named. JSON values."""
        if self.chain is not None:
            manifest = opened(self.model).manifest
            return self.name, self.chain, manifest.weights_sha256, manifest.graph_sha256
        digest = None if self.stage is None else hashlib.sha256(self.stage).hexdigest()
        return self.name, digest, self.threshold


def rows_of(model: Path, networks: Mapping[str, ModelProto], threshold: float | None = None) -> tuple[Row, ...]:
    """The rows that a file and other networks give, least defended first; those that it cannot give are left out.

    Args:
        model: The defended model file.
        networks: Exported classifiers `image` -> `log_probabilities` by the name of their row: ADVERSARIAL and WIDER,
            as far as they are there.
        threshold: Largest probability of the first juror below which CONFIDENCE flags; None: that row is left out.

    Raises:
        ModelFileError: If the file cannot be used.
    """
    file = opened(model)
    test, served, juror = file.manifest.to_test(), served_row(file), first_juror(file)
    stages = {BARE: cut_stage(file.proto, CLASSIFIER), **networks}
    if juror is not None:
        stages[PRUNED] = juror
    single = {
        name: Row(name, model, one.SerializeToString(), note=_NOTES.get(name, "")) for name, one in stages.items()
    }
    if juror is not None and threshold is not None:
        single[CONFIDENCE] = replace(single[PRUNED], name=CONFIDENCE, threshold=threshold, note="")
    votes = bool(test.vote_weights.any())
    chains = [Row(JURY, model)] if votes else []
    # a test that waits for the vote answers as the whole jury does
    chains.append(Row(UNFLAGGED, model, same_as=JURY if test.await_vote else None))
    if not file.manifest.purifier.off:
        chains.append(Row(UNPURIFIED, model, goals=_FLAGGING, note=_NOTES[UNPURIFIED]))
    whole = [
        Row(name, model, goals=_FLAGGING) if name == served else Row(name, model, note=_NOT_SERVED, same_as=served)
        for name in corrections(test).values()
    ]
    first = [single[name] for name in (BARE, ADVERSARIAL, PRUNED, CONFIDENCE) if name in single]
    return (*first, *chains, *whole, *(single[name] for name in (WIDER,) if name in single))


def first_juror(file: ModelFile) -> ModelProto | None:
    """The first of a file's members that is a juror, as a stage; None: it has none."""
    jurors = [i for i, member in enumerate(file.manifest.members) if member.role == "juror"]
    return cut_stage(file.proto, member_scope(jurors[0])) if jurors else None


def served_row(file: ModelFile) -> str:
    """Name of the row that is the file as it is served."""
    return FULL[file.manifest.to_test().correction]


def open_row(row: Row) -> Target:
    """The target of a row.

    Raises:
        ModelFileError: If the file or the stage cannot be used.
    """
    stages = _stages(row.model, row.model.stat().st_mtime_ns)
    if row.stage is not None:
        borrowing = stages.twin if row.name == BARE and not stages.twin.has_features else None
        return network_target(row.name, onnx.load_from_string(row.stage), row.threshold, borrowing=borrowing)
    if row.of_file == served_row(stages.file):
        return replace(defended_target(stages.file, row.model, stages.twin), name=row.name)
    return replace(chain_target(row.of_file, stages), name=row.name)


def cost(row: Row, images: Float32) -> float:
    """Floating-point operations of one of these images, the mean, as a multiple of those of the file's classifier."""
    stages = _stages(row.model, row.model.stat().st_mtime_ns)
    if row.stage is not None:
        flops: float = stage_flops(onnx.load_from_string(row.stage), stages.file.manifest.input.shape)
    else:
        flops = Chain.of(row.of_file, stages.file.manifest).clean_flops(stages, images[:_TIMED])
    return flops / stages.flops.classifier


def milliseconds(row: Row, images: Float32) -> float:
    """Time of one image alone, on one thread of ONNX Runtime: the median over up to 64 images of the best of three.

    The served file is timed whole, every other row as its stages one after the other.
    """
    system, rows = open_row(replace(row, threshold=None)).system, images[:_TIMED]
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
