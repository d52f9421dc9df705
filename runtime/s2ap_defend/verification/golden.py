"""Golden inputs: made of numbers, answered when a file is written, and asked again wherever it is verified."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from s2ap_defend.executors.whole import WholeExecutor
from s2ap_defend.golden_record import GoldenRecord
from s2ap_defend.manifest import Manifest
from s2ap_defend.model_file import ModelFile, all_graphs, open_model_file, write_model_file
from s2ap_defend.precision_record import weights_precision
from s2ap_defend.types import Verdicts

__all__ = ["answer_golden", "compare", "differences", "generated_pixels", "is_reduced", "write_with_golden"]

IMAGES = 8
MOST_BYTES = 1 << 20
"""Of the golden inputs of one file; of very large images there are two all the same."""
_COARSE = 4
"""Patches along a side of what is smooth in an image."""
_CANDIDATES = 2
"""Times the images that are wanted."""
_MOVED = 2
_NUDGE = {False: 1e-5, True: 1e-3}
"""How far pixels are moved to see whether a verdict hangs on roundings, by whether the file computes in less than
float32."""
CLOSE = {False: 1e-3, True: 2e-2}
"""Largest difference of a probability, and of a reconstruction error relative to the largest, on another device: a GPU
rounds to 10 bits of a float32 (TF32), or each value to float16; another engine may round to the next of 255 levels."""
_EXACT = ("label", "adversarial", "abstained", "base_label", "members_used")


def generated_pixels(shape: tuple[int, int, int], count: int | None = None) -> NDArray[np.uint8]:
    """Images from smooth patches to noise, the same everywhere: bytes [n, C, H, W].

    Args:
        shape: (C, H, W).
        count: How many; None: as many as a file holds.
    """
    channels, height, width = shape
    number = max(2, min(IMAGES, MOST_BYTES // (channels * height * width))) if count is None else count
    rng = np.random.default_rng(0)
    rows, columns = np.arange(height) * _COARSE // height, np.arange(width) * _COARSE // width
    images = np.empty((number, *shape), dtype=np.uint8)
    for i in range(number):
        smooth, noise = rng.random((channels, _COARSE, _COARSE))[:, rows][:, :, columns], rng.random(shape)
        share = i / max(number - 1, 1)
        images[i] = np.rint(255.0 * ((1.0 - share) * smooth + share * noise))
    return images


def answer_golden(file: ModelFile) -> GoldenRecord | None:
    """Golden inputs of a file, answered on the CPU.

    Only images are taken whose verdict does not hang on roundings: it stays when their pixels are moved a little.

    Returns:
        None where no image is so.

    Raises:
        EngineError: If the file cannot be run.
    """
    wanted = len(generated_pixels(file.manifest.input.shape))
    pixels = generated_pixels(file.manifest.input.shape, _CANDIDATES * wanted)
    executor, images = WholeExecutor(file, device="cpu"), pixels.astype(np.float32) / np.float32(255)
    said, rng, far = executor.run(images), np.random.default_rng(1), _NUDGE[is_reduced(file.proto)]
    steady = np.ones(len(images), dtype=bool)
    for _ in range(_MOVED):
        moved = images + rng.choice([-far, far], size=images.shape).astype(np.float32)
        again = executor.run(np.clip(moved, 0.0, 1.0))
        for name in (*_EXACT, "log_likelihood_ratio"):
            steady &= getattr(said, name) == getattr(again, name)
    index = np.flatnonzero(steady)
    index = index[np.linspace(0, len(index) - 1, min(wanted, len(index))).astype(np.int64)]
    return GoldenRecord.of(pixels[index], said.rows(index)) if len(index) else None


def write_with_golden(model: ModelProto, manifest: Manifest, path: Path, *, external_data: bool | None = None) -> None:
    """Write a defended model file, ask it its golden inputs, and write it again with the answers.

    Args:
        model: The defended graph.
        manifest: Its manifest.
        path: The file to write.
        external_data: As for `write_model_file`.

    Raises:
        ModelFileError: If it cannot be written.
        EngineError: If it cannot be run.
    """
    write_model_file(model, manifest, path, external_data=external_data)
    golden = answer_golden(open_model_file(path))
    write_model_file(model, manifest, path, external_data=external_data, golden=golden)


def compare(record: GoldenRecord, found: Verdicts, *, reduced: bool) -> str:
    """What differs between golden answers and those of this machine, for people; empty: nothing that matters.

    Args:
        record: Of the file.
        found: Of its images, here.
        reduced: Whether the file computes in less than float32.
    """
    wrong = [name for name in _EXACT if list(getattr(record, name)) != getattr(found, name).tolist()]
    expected = np.array(record.log_likelihood_ratio)
    if not np.allclose(found.log_likelihood_ratio, expected, rtol=0.0, atol=1e-9):
        wrong.append("log_likelihood_ratio")
    own = np.abs(found.probabilities.max(axis=1).astype(np.float64) - np.array(record.probability)).max()
    errors = np.array(record.reconstruction_error)
    error = np.abs(found.reconstruction_error.astype(np.float64) - errors).max() / max(float(errors.max()), 1e-30)
    if not own <= CLOSE[reduced]:
        wrong.append(f"probability, by {own:.2g}")
    if not error <= CLOSE[reduced]:
        wrong.append(f"reconstruction_error, by {error:.2g} of the largest")
    return ", ".join(wrong)


def differences(one: Verdicts, other: Verdicts) -> tuple[int, float]:
    """(images whose label, flag or abstention differs, largest difference of a probability or pixel)."""
    flips = np.zeros(len(one), dtype=bool)
    for name in ("label", "adversarial", "abstained"):
        flips |= getattr(one, name) != getattr(other, name)
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("probabilities", "purified")]
    largest = max(float(np.abs(a.astype(np.float64) - b).max(initial=0)) for a, b in pairs)
    return int(flips.sum()), largest


def is_reduced(proto: ModelProto) -> bool:
    """Whether a model holds weights in less than float32, in its graph or in branches."""
    return weights_precision(tensor for graph in all_graphs(proto.graph) for tensor in graph.initializer) != "float32"
