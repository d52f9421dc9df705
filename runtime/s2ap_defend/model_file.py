"""Open, verify and write the defended model file, the one contract between the packages (docs/model-file.md)."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from s2ap_defend.errors import ModelFileError
from s2ap_defend.manifest import METADATA_KEY, Manifest, manifest_version, read_manifest
from s2ap_defend.types import Verdicts

HARDEN_COMMAND = "s2ap-defend harden RECIPE -o model.onnx"
MAX_EMBEDDED_BYTES = 1_900_000_000
TABLES = ("edges", "increments", "lower", "upper")
BANK = "purifier/bank"


@dataclass(frozen=True)
class ModelFile:
    """A verified defended model file.

    Attributes:
        path: Where it was read.
        format_version: Version of the format that it is written in.
        manifest: The checked manifest, in the words of the newest version.
        proto: The ONNX model with all weights in memory.
        size_bytes: Size of the file and of its external data.
    """

    path: Path
    format_version: int
    manifest: Manifest
    proto: ModelProto
    size_bytes: int


def open_model_file(path: Path) -> ModelFile:
    """Read a defended model file and verify its manifest, its hashes, its test tables and its purifier.

    The hashes find damage and careless edits. They are no signature: who can replace the file can replace them.

    Raises:
        ModelFileError: If the file cannot be read, is no ONNX model, has no manifest, or was changed.
    """
    proto = _load(path)
    texts = [entry.value for entry in proto.metadata_props if entry.key == METADATA_KEY]
    if not texts:
        raise ModelFileError(f"{path} is an ONNX model without a defence; make one with: {HARDEN_COMMAND}")
    version, manifest = manifest_version(texts[0], source=path.name), read_manifest(texts[0], source=path.name)
    for what, found, expected in (
        ("weights", weights_sha256(proto), manifest.weights_sha256),
        ("graph", graph_sha256(proto), manifest.graph_sha256),
    ):
        if found != expected:
            raise ModelFileError(
                f"{path} was changed after it was written: its {what} have SHA-256 {found[:12]}..., the manifest "
                f"says {expected[:12]}...; fetch or export the file again"
            )
    _check_outputs(proto, version, path)
    _check_tables(proto, manifest, version, path)
    _check_purifier(proto, manifest, path)
    data = path.with_name(path.name + ".data")
    size_bytes = path.stat().st_size + (data.stat().st_size if data.exists() else 0)
    return ModelFile(path, version, manifest, proto, size_bytes)


def write_model_file(model: ModelProto, manifest: Manifest, path: Path, *, external_data: bool | None = None) -> None:
    """Write a defended model file; nothing is left behind when writing fails.

    Args:
        model: The defended graph.
        manifest: Its manifest; the two hashes in it are computed anew.
        path: The file to write.
        external_data: Whether weights go to `NAME.data` beside the file; None decides by size.

    Raises:
        ModelFileError: If the folder cannot be written, or the graph has other outputs than its version has.
    """
    _check_outputs(model, manifest.format_version, path)
    hashes = {"weights_sha256": weights_sha256(model), "graph_sha256": graph_sha256(model)}
    sealed = manifest.model_copy(update=hashes)
    written = ModelProto()
    written.CopyFrom(model)
    del written.metadata_props[:]
    written.metadata_props.add(key=METADATA_KEY, value=sealed.to_json())
    external = model.ByteSize() > MAX_EMBEDDED_BYTES if external_data is None else external_data
    check_writable(path)
    folder = _temporary_folder(path)
    try:
        onnx.save_model(
            written,
            folder / path.name,
            save_as_external_data=external,
            location=f"{path.name}.data" if external else None,
            size_threshold=1024,
        )
        for name in (f"{path.name}.data", path.name):
            if (folder / name).exists():
                (folder / name).replace(path.with_name(name))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder(path: Path) -> Path:
    """A new folder beside `path`, whose own folder is made when missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror or error}") from error


def check_writable(path: Path) -> None:
    """Check that `path` can be written, before the work that produces it; nothing is created, nor its folder.

    Raises:
        ModelFileError: If it cannot.
    """
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder; name a file to write, such as {path / 'model.onnx'}")
        with tempfile.TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror or error}") from error
    if path.exists() and not os.access(path, os.W_OK):
        raise ModelFileError(f"{path} exists and is read-only; choose another file")


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside `path`, then rename it: a reader sees the old content or the new one.

    Its folder is made when missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_bytes(content)
    beside.replace(path)


def weights_sha256(model: ModelProto) -> str:
    """SHA-256 over every tensor of the model: name, type, shape and little-endian values, in file order."""
    digest = hashlib.sha256()
    for tensor in _tensors(model.graph):
        array = numpy_helper.to_array(tensor)
        digest.update(f"{tensor.name}:{tensor.data_type}:{list(tensor.dims)}\n".encode())
        digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def graph_sha256(model: ModelProto) -> str:
    """SHA-256 over the graph without the values of its tensors, and over the operator sets."""
    bare = GraphProto()
    bare.CopyFrom(model.graph)
    for tensor in _tensors(bare):
        name, data_type, dims = tensor.name, tensor.data_type, list(tensor.dims)
        tensor.Clear()
        tensor.name, tensor.data_type = name, data_type
        tensor.dims.extend(dims)
    opsets = ",".join(f"{opset.domain}:{opset.version}" for opset in model.opset_import)
    return hashlib.sha256(opsets.encode() + bare.SerializeToString(deterministic=True)).hexdigest()


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside a node: branches of an If."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
        for inner in subgraphs(node):
            yield from _tensors(inner)


def _load(path: Path) -> ModelProto:
    try:
        proto = onnx.load(path)
    except FileNotFoundError as error:
        raise ModelFileError(f"{error.filename or path} does not exist") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelFileError(f"{path} is truncated or no ONNX model; fetch or export it again") from error
    if not proto.graph.node:
        raise ModelFileError(f"{path} holds no ONNX graph; it is empty or truncated")
    return proto


def output_names(version: int) -> tuple[str, ...]:
    """Names of the outputs of a file, in order; version 1 has no `abstained`, none of its inputs does."""
    return Verdicts.FIELDS if version > 1 else tuple(name for name in Verdicts.FIELDS if name != "abstained")


def _check_outputs(proto: ModelProto, version: int, path: Path) -> None:
    found, expected = tuple(output.name for output in proto.graph.output), output_names(version)
    if found != expected:
        raise ModelFileError(
            f"{path}: a file of version {version} has the outputs {', '.join(expected)}; found "
            f"{', '.join(found) or 'none'}; export the model again"
        )


def _check_tables(proto: ModelProto, manifest: Manifest, version: int, path: Path) -> None:
    test = manifest.test.to_test()
    names: tuple[str, ...] = TABLES
    if version > 1 and test.correct:
        names += ("base_vote_weights", "base_vote_edges") if len(test.base_vote_edges) else ("base_vote_weights",)
    in_graph = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for name in names:
        expected, array = getattr(test, name), in_graph.get(f"test/{name}")
        if array is None or not np.array_equal(array, expected):
            raise ModelFileError(f"{path}: the manifest's test/{name} differ from the graph's; export the model again")


def _check_purifier(proto: ModelProto, manifest: Manifest, path: Path) -> None:
    """Compare what the manifest says of the purifier with its stage: the bank, whether it is off, its precision."""
    scope = BANK.partition("/")[0] + "/"
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name.startswith(scope)}
    convolutions = sum(
        node.name.startswith(scope) and node.op_type in {"Conv", "ConvTranspose"} for node in proto.graph.node
    )
    said = manifest.purifier
    bank = numpy_helper.to_array(tensors[BANK]) if BANK in tensors else None
    found = expected = ""
    if said.off and (bank is not None or convolutions):
        found, expected = f"a purifier of {convolutions} convolutions", "steps 0, which is no purifier"
    elif not said.off and bank is None:
        found, expected = f"no {BANK}", f"steps {said.steps} with bank_size {said.bank_size}"
    elif bank is not None:
        shape = (said.bank_size, *manifest.input.shape)
        digest = hashlib.sha256(np.ascontiguousarray(bank).astype("<f4").tobytes()).hexdigest()
        if bank.shape != shape:
            found, expected = f"a {BANK} of shape {bank.shape}", f"{shape}"
        elif digest != said.bank_sha256:
            found, expected = f"a {BANK} with SHA-256 {digest[:12]}...", f"bank_sha256 {said.bank_sha256[:12]}..."
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in tensors.values())
    precision = "float16" if half else "float32"
    if not expected and precision != said.precision:
        found, expected = f"purifier weights in {precision}", f"precision {said.precision}"
    if expected:
        raise ModelFileError(
            f"{path}: the graph has {found}, the manifest's purifier says {expected}; export the model again"
        )
