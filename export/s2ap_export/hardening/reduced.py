"""A file in less than float32 compared with the same networks in float32: what the saved bits change."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto

from s2ap_defend.errors import RecipeError
from s2ap_defend.executors.whole import WholeExecutor
from s2ap_defend.manifest import Manifest
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.precision_record import PrecisionComparison, PrecisionFigures
from s2ap_defend.types import Float32, Verdicts
from s2ap_export.hardening.measured_once import measured_once
from s2ap_train.adaptive.search import AdaptiveBudget, adaptive_attack
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet
from s2ap_train.recipe.tables import StagePrecision
from s2ap_train.redteam.target import defended_target
from s2ap_train.twin import Twin

__all__ = ["MEASURED_FILE", "check_flips", "compare_precision", "milliseconds", "with_comparison"]

ATTACK = "that of calibration, on the networks in float32, transferred"
MOST_ATTACKED = 1024
"""Attacked images that are compared; they are taken evenly from all."""
ADAPTIVE = AdaptiveBudget(steps=10, cheap_steps=20, restarts=1, targets=1, thorough=False)
"""Of the attack through the twin of each file, on at most `MOST_ADAPTIVE` images."""
MOST_ADAPTIVE = 64
_ROWS = 256
_TIMED_ROWS, _ROUNDS = 64, 11
MEASURED_FILE = "precision-measured.json"


def with_comparison(
    manifest: Manifest,
    reduced: Path,
    in_float32: Callable[[], tuple[ModelProto, Manifest]],
    clean: ImageSet,
    attacked: ImageSet,
    work_dir: Path,
    *,
    eps: float,
    seed: int,
    max_flips: float,
) -> Manifest:
    """The manifest of a file with what its precision changes; the other file is written to the same folder.

    Args:
        manifest: Of the file; without a record of precision it is handed back as it is.
        reduced: The file.
        in_float32: Makes the same of the same networks in float32, calibrated in the same way.
        clean: Validation images.
        attacked: Attacked images with their true labels.
        work_dir: Where times and attacks are stored, so that a second run writes the same manifest.
        eps: l_inf budget of the attack through the twins, pixels in [0, 1].
        seed: Of its random starts.
        max_flips: Of the recipe.

    Raises:
        RecipeError: If more labels or flags of clean images differ.
    """
    if manifest.precision is None:
        return manifest
    single = reduced.with_name(f"float32-{reduced.name}")
    write_model_file(*in_float32(), single)
    comparison = compare_precision(reduced, single, clean, attacked)
    check_flips(comparison, max_flips)
    files, some = (reduced, single), _evenly(clean, MOST_ADAPTIVE)

    def measure() -> list[float]:
        through = [_adaptive_accuracy(path, some, eps=eps, seed=seed) for path in files]
        return [*milliseconds(files, clean.images), *through]

    sums = [open_model_file(path).manifest.graph_sha256 for path in files]
    key = "-".join([*sums, hashlib.sha256(some.images.tobytes()).hexdigest(), f"{eps:g}-{seed}"])
    found = measured_once(work_dir / MEASURED_FILE, key, measure)
    of, other = (
        figures.model_copy(update={"milliseconds": time, "adaptive_accuracy": through})
        for figures, time, through in zip((comparison.reduced, comparison.float32), found[:2], found[2:], strict=True)
    )
    comparison = comparison.model_copy(update={"adaptive_samples": len(some), "reduced": of, "float32": other})
    return manifest.model_copy(update={"precision": manifest.precision.model_copy(update={"comparison": comparison})})


def compare_precision(reduced: Path, single: Path, clean: ImageSet, attacked: ImageSet) -> PrecisionComparison:
    """Compare two files of the same networks on clean and on transferred attacked images, on the CPU."""
    some = _evenly(attacked, MOST_ATTACKED)
    asked = {path: (_ask(path, clean.images), _ask(path, some.images)) for path in (reduced, single)}
    one, other = asked[reduced][0], asked[single][0]
    flagged = (one.adversarial != other.adversarial) | (one.abstained != other.abstained)
    of, other_figures = (_figures(path, *asked[path], clean, some) for path in (reduced, single))
    return PrecisionComparison(
        split="validation",
        samples=len(clean),
        label_flips=int((one.label != other.label).sum()),
        flag_flips=int(flagged.sum()),
        attack=ATTACK,
        attacked_samples=len(some),
        reduced=of,
        float32=other_figures,
    )


def milliseconds(files: Sequence[Path], images: Float32, *, rounds: int = _ROUNDS) -> list[float]:
    """Processor time of one of up to 64 images at once in each whole file, on one thread: medians, in turn."""
    executors, some = (
        [WholeExecutor(open_model_file(path), device="cpu", threads=1) for path in files],
        images[:_TIMED_ROWS],
    )
    times = np.empty((rounds, len(executors)))
    for row in times:
        for i, executor in enumerate(executors):
            began = time.thread_time()
            executor.run(some)
            row[i] = time.thread_time() - began
    return [float(one) for one in 1e3 * np.median(times, axis=0) / len(some)]


def check_flips(comparison: PrecisionComparison, max_flips: float) -> None:
    """Refuse a precision that changes more verdicts than the recipe allows.

    Raises:
        RecipeError: With how many.
    """
    found, allowed = max(comparison.label_flips, comparison.flag_flips), max_flips * comparison.samples
    if found > allowed:
        kinds = [name for name in StagePrecision.model_fields if name != "purifier"]
        raise RecipeError(
            f"export.precision: {comparison.in_words}; export.max_flips {max_flips:g} allows {allowed:.3g} of either; "
            f"keep the purifier, or {' or '.join(kinds)}, in float32, or allow more"
        )


def _evenly(data: ImageSet, most: int) -> ImageSet:
    return data.subset(np.linspace(0, len(data) - 1, min(most, len(data))).astype(np.int64))


def _adaptive_accuracy(path: Path, data: ImageSet, *, eps: float, seed: int) -> float:
    """Share of images right, flagged or not answered under descents through the twin of the file."""
    file = open_model_file(path)
    target = defended_target(file, path, Twin.from_file(file))
    with one_thread():
        found = adaptive_attack(
            target.system, target.view, target.plan(ADAPTIVE), data, eps=eps, budget=ADAPTIVE, seed=seed
        )
    said = _ask(path, found.images)
    return float(((said.label == data.labels) | said.adversarial | said.abstained).mean())


def _ask(path: Path, images: Float32) -> Verdicts:
    executor = WholeExecutor(open_model_file(path), device="cpu")
    return Verdicts.concatenate([executor.run(images[i : i + _ROWS]) for i in range(0, len(images), _ROWS)])


def _figures(path: Path, clean: Verdicts, attacked: Verdicts, images: ImageSet, hurt: ImageSet) -> PrecisionFigures:
    right = attacked.label == hurt.labels
    return PrecisionFigures(
        clean_accuracy=float((~clean.abstained & (clean.label == images.labels)).mean()),
        clean_flagged=float(clean.adversarial.mean()),
        label_accuracy=float((right & ~attacked.abstained).mean()),
        robust_accuracy=float((right | attacked.adversarial | attacked.abstained).mean()),
        size_bytes=open_model_file(path).size_bytes,
    )
