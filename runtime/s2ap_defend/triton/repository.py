"""A model repository for Triton: the defended classifier in the python backend, and the plain file in onnxruntime's.

    FOLDER/NAME/config.pbtxt, FOLDER/NAME/1/model.py, FOLDER/NAME/1/model.onnx
    FOLDER/NAME_onnx/config.pbtxt, FOLDER/NAME_onnx/1/model.onnx

Batches are formed by Triton's dynamic batcher. No `default_queue_policy` is written: it rejects or postpones requests
by rules that whoever sends many can turn against others.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from s2ap_defend.errors import ModelFileError, RecipeError
from s2ap_defend.model_file import ModelFile
from s2ap_defend.serve.metadata import configure_model
from s2ap_defend.serve.served import PUBLIC_OUTPUTS, ServedModel
from s2ap_defend.triton.backend import MODEL_FILE
from s2ap_defend.types import Verdicts

__all__ = ["MAX_BATCH", "write_repository"]

MAX_BATCH = 64
VERSION = "1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MODEL_PY = '''"""A defended classifier; s2ap-defend must be installed where Triton runs this."""

from s2ap_defend.triton.backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_ENUMS = {"data_type", "kind"}
_ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def write_repository(
    file: ModelFile,
    folder: Path,
    *,
    name: str | None = None,
    max_batch: int = MAX_BATCH,
    device: Literal["cpu", "cuda"] = "cpu",
    evidence: bool = False,
) -> tuple[Path, Path]:
    """Write both models of a file into a model repository; nothing is left behind when that fails.

    Args:
        file: A verified file.
        folder: Of the repository; made when missing, other models in it stay.
        name: Of the model; None: the file's stem.
        max_batch: Images of a batch.
        device: Where both run.
        evidence: Whether clients see all outputs: an oracle for attackers.

    Returns:
        The folders of the python model and of the plain one.

    Raises:
        RecipeError: If the name cannot be used, or is taken in this repository.
        ModelFileError: If the repository cannot be written.
    """
    called = file.path.stem if name is None else name
    if not _NAME.fullmatch(called):
        raise RecipeError(f"{called!r} is no name of a Triton model: letters, digits, '_', '-' and '.'; give --name")
    places = folder / called, folder / f"{called}_onnx"
    for place in places:
        if place.exists():
            raise RecipeError(f"{place} is there already; give another --name, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as made:
            for place, backend in zip(places, ("python", "onnxruntime"), strict=True):
                config = _configuration(file, place.name, backend, max_batch, device, evidence)
                _write_model(file, Path(made, place.name), config, python=backend == "python")
            for place in places:
                Path(made, place.name).replace(place)
    except OSError as error:
        raise ModelFileError(f"{folder} cannot be written: {error.strerror or error}") from error
    return places


def _configuration(
    file: ModelFile, name: str, backend: str, max_batch: int, device: Literal["cpu", "cuda"], evidence: bool
) -> dict[str, Any]:
    manifest = file.manifest
    outputs = Verdicts.FIELDS if evidence else PUBLIC_OUTPUTS
    served = ServedModel(name, manifest.input.shape, len(manifest.classes), outputs)
    config = configure_model(served, manifest.classes, max_batch)
    del config["platform"]
    config["backend"] = backend
    for output in config["output"]:
        if not output["dims"]:  # one number an image: Triton has no tensors [N] in batches
            output["dims"] = [1]
            if backend == "onnxruntime":
                output["reshape"] = {"shape": []}
    config["instance_group"] = [{"count": 1, "kind": "KIND_GPU" if device == "cuda" else "KIND_CPU"}]
    return config


def _write_model(file: ModelFile, folder: Path, config: Mapping[str, Any], *, python: bool) -> None:
    version = folder / VERSION
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text("\n".join(_text(config)) + "\n", encoding="utf-8")
    if python:
        (version / "model.py").write_text(_MODEL_PY)
    shutil.copyfile(file.path, version / MODEL_FILE)
    for location in file.data_locations:
        shutil.copyfile(file.path.with_name(location), version / location)


def _text(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Protobuf's text format; every value of `parameters` is an entry of a map."""
    for name, value in fields.items():
        if name == "parameters":
            for key, entry in value.items():
                yield from _text({"parameters ": {"key": key, "value": entry}}, indent)
        elif isinstance(value, Mapping):
            yield f"{indent}{name.strip()} {{"
            yield from _text(value, f"{indent}  ")
            yield f"{indent}}}"
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for one in value:
                yield from _text({name: one}, indent)
        elif isinstance(value, list):
            yield f"{indent}{name}: [{', '.join(map(str, value))}]"
        elif isinstance(value, str) and name not in _ENUMS:
            yield f'{indent}{name}: "{"".join(_ESCAPED.get(one, one) for one in value)}"'
        else:
            yield f"{indent}{name}: {value}"
