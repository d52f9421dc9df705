"""The full check of a file: what it holds, whether its stages say what the whole says, and where it runs."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from s2ap_defend.engines import Device
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.errors import DefendError, ModelFileError
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.executors.whole import WholeExecutor
from s2ap_defend.golden_record import GoldenRecord, read_golden
from s2ap_defend.model_file import ModelFile, check_there, open_model_file
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, cut_stage, member_scope
from s2ap_defend.types import Float32, Verdicts
from s2ap_defend.verification import Check, Place, Verification
from s2ap_defend.verification.content import foreign_content
from s2ap_defend.verification.golden import CLOSE, compare, differences, generated_pixels, is_reduced
from s2ap_defend.verification.lint import lint_stage
from s2ap_defend.verification.places import find_places

__all__ = ["file_stages", "verify_file"]

PARITY = 1e-5
"""Largest difference of a probability or a pixel between the whole file and its stages, on one device."""
_FEW = 3  # reasons in one line


def verify_file(path: Path, *, needed: Sequence[Device] = ("cpu",), signature: Check | None = None) -> Verification:
    """Look at everything that can be known of a file on this machine; nothing is written.

    Args:
        path: The file; weights in external data lie in the same folder.
        needed: Devices on which it must run; a device that is not there fails the check.
        signature: What was found of its signature, where one was asked for.

    Raises:
        ModelFileError: If the file is not there or cannot be read.
    """
    check_there(path)
    checks = [] if signature is None else [signature]
    if signature is not None and signature.state == "failed":
        return Verification((signature, _not_opened("a file of unknown origin is not opened")), (), False, 0)
    try:
        file = open_model_file(path)
    except ModelFileError as error:
        failed = Check("model file", "failed", str(error))
        return Verification((*checks, failed, _not_opened("the file could not be opened")), (), False, 0)
    manifest = file.manifest
    what = f"format {manifest.format_version}, weights and graph have the manifest's SHA-256, tables are the graph's"
    checks.append(Check("model file", "passed", what))
    checks += [_onnx(path), _data_only(file)]
    stages, cut = _cut(file)
    checks.append(cut)
    refused = [f"stage {scope}: {one}" for scope, stage in stages.items() for one in lint_stage(stage)]
    checks.append(_linted(refused, "tensorrt" in needed))
    golden, images, read = _golden(file)
    places = find_places(stages, refused) if stages else ()
    checks += [_runs(place) for place in places if place.device in needed]
    checks += _answers(file, images, golden, read, places)
    return Verification(tuple(checks), places, golden is not None, len(images))


def file_stages(file: ModelFile) -> dict[str, ModelProto]:
    """All stages of a file, by scope, the second run of the classifier included.

    Raises:
        ModelFileError: If one cannot be cut out.
    """
    scopes = [PURIFIER, CLASSIFIER, *(member_scope(i) for i in range(len(file.manifest.members)))]
    if file.manifest.decision.purify == "suspicious":
        scopes.append(CLASSIFIER_AGAIN)
    return {scope: cut_stage(file.proto, scope) for scope in scopes}


def _not_opened(why: str) -> Check:
    return Check("everything else", "skipped", why)


def _tried(name: str, function: Callable[[], str]) -> Check:
    """A check that passes with what the function says, or fails with its error."""
    try:
        return Check(name, "passed", function())
    except DefendError as error:
        return Check(name, "failed", str(error))


def _onnx(path: Path) -> Check:
    try:
        onnx.checker.check_model(str(path), full_check=True, check_custom_domain=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check("onnx", "failed", " ".join(str(error).split()))
    return Check("onnx", "passed", f"valid by onnx {onnx.__version__}, shapes and types inferred")


def _data_only(file: ModelFile) -> Check:
    found = foreign_content(file.proto)
    if found:
        return Check("data only", "failed", _some(found))
    return Check("data only", "passed", "standard operators, no function, pickle, address or path of a machine")


def _cut(file: ModelFile) -> tuple[dict[str, ModelProto], Check]:
    try:
        stages = file_stages(file)
        for scope, stage in stages.items():
            try:
                onnx.checker.check_model(stage, full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
                raise ModelFileError(f"stage {scope} is no valid model: {' '.join(str(error).split())}") from error
            _run_alone(scope, stage, file.manifest.input.shape)
    except DefendError as error:
        return {}, Check("stages", "failed", str(error))
    return stages, Check("stages", "passed", f"{len(stages)} cut out, each a valid model that runs alone")


def _run_alone(scope: str, stage: ModelProto, shape: tuple[int, int, int]) -> None:
    outputs = [output.name for output in stage.graph.output]
    image = generated_pixels(shape, 1).astype(np.float32) / np.float32(255)
    said = OnnxRuntimeEngine(stage.SerializeToString(), device="cpu").run({"image": image}, outputs)
    for name, value in zip(outputs, said, strict=True):
        if not np.isfinite(value).all():
            raise ModelFileError(f"stage {scope} answers {name} that is not finite; export the model again")


def _linted(refused: Sequence[str], needed: bool) -> Check:
    if not refused:
        return Check("tensorrt", "passed", "no control flow, float64 or operator of a stage that TensorRT refuses")
    return Check("tensorrt", "failed" if needed else "noted", f"not for TensorRT: {_some(refused)}")


def _golden(file: ModelFile) -> tuple[GoldenRecord | None, Float32, Check | None]:
    """The golden inputs of a file, or generated ones, and what is wrong with its own."""
    shape, failed = file.manifest.input.shape, None
    try:
        golden = read_golden(file.proto)
        if golden is not None:
            return golden, golden.images(shape), None
    except ModelFileError as error:
        failed = Check("golden answers", "failed", str(error))
    return None, generated_pixels(shape).astype(np.float32) / np.float32(255), failed


def _runs(place: Place) -> Check:
    return Check(f"runs on {place.device}", "passed" if place.runs else "failed", place.detail)


def _answers(
    file: ModelFile, images: Float32, golden: GoldenRecord | None, read: Check | None, places: Sequence[Place]
) -> Iterator[Check]:
    """The whole file against its golden answers, and its stages against the whole, wherever it runs."""
    if read is not None:
        yield read
    elif golden is None:
        yield Check("golden answers", "skipped", f"the file holds none; {len(images)} generated images were asked")
    try:
        whole = WholeExecutor(file, device="cpu").run(images)
    except DefendError as error:
        yield Check("whole file", "failed", str(error))
        return
    if golden is not None:
        yield _tried("golden answers", lambda: _as_written(file, golden, whole))
    yield _tried("stages and whole", lambda: _same(whole, file, images, "cpu", PARITY))
    for device in (place.device for place in places if place.runs and place.device != "cpu"):
        close = CLOSE[is_reduced(file.proto)]
        yield _tried(f"stages on {device}", partial(_same, whole, file, images, device, close))


def _as_written(file: ModelFile, golden: GoldenRecord, found: Verdicts) -> str:
    different = compare(golden, found, reduced=is_reduced(file.proto))
    if different:
        raise ModelFileError(
            f"of {len(golden.label)} golden inputs the file does not answer what it answered where it was written: "
            f"{different}; try another version of ONNX Runtime, or export the model again here"
        )
    return f"{len(golden.label)} golden inputs are answered as where the file was written"


def _same(whole: Verdicts, file: ModelFile, images: Float32, device: Device, allowed: float) -> str:
    """Compare the stages on a device with the whole file on the CPU."""
    staged = StagedExecutor.of(file, device=device, threads=1).run(images)
    flips, largest = differences(whole, staged)
    if flips or not largest <= allowed:
        raise ModelFileError(
            f"the stages differ from the whole file on {flips} of {len(images)} images, probabilities and pixels by "
            f"{largest:.2g}, expected none and at most {allowed:g}; this is a fault of the export or of the engine, "
            "please report it with the file"
        )
    return f"same verdicts on {len(images)} images, probabilities and pixels within {largest:.2g}"


def _some(found: Sequence[str]) -> str:
    more = f" (and {len(found) - _FEW} more)" if len(found) > _FEW else ""
    return "; ".join(found[:_FEW]) + more
