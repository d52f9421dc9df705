"""Open, verify and write the defended model file, the one contract between the packages (docs/model-file.md)."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from s2ap_defend.contract import check_contract, check_outputs
from s2ap_defend.errors import ModelFileError
from s2ap_defend.external_data import THRESHOLD, data_file, fill, locations, own_data, tensor_array, tensor_bytes
from s2ap_defend.files import check_writable
from s2ap_defend.golden_record import GOLDEN_KEY, GoldenRecord
from s2ap_defend.half_weights import lengthen, shorten
from s2ap_defend.manifest import METADATA_KEY, Manifest, read_manifest
from s2ap_defend.shipped import shipped_file
from s2ap_defend.sparse_weights import compress, expand
from s2ap_defend.two_four import two_four_stages

MAX_EMBEDDED_BYTES = 1_900_000_000


@dataclass(frozen=True)
class ModelFile:
    """A verified defended model file.

    Attributes:
        path: Where it was read.
        manifest: The checked manifest.
        outline: The ONNX model; weights in external data are references to it, for engines that map them, and sparse
            ones are dense.
        size_bytes: Size of the file and of its external data.
        data_locations: Names of the files of its external data, which lie in the same folder.
    """

    path: Path
    manifest: Manifest
    outline: ModelProto
    size_bytes: int
    data_locations: tuple[str, ...] = ()

    @cached_property
    def proto(self) -> ModelProto:
        """The ONNX model with all weights in memory; what lies in external data is read at the first use.

        Raises:
            ModelFileError: If it cannot be read any more.
        """
        if not self.data_locations:
            return self.outline
        whole = ModelProto()
        whole.CopyFrom(self.outline)
        try:
            return fill(whole, self.path.parent)
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise _unreadable(self.path, error) from error

    @property
    def folder(self) -> Path:
        """Where its external data lies."""
        return self.path.absolute().parent


def check_there(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        ModelFileError: If it is none.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise ModelFileError(f"{path} {found}; name a model file, such as the model.onnx that harden wrote")


def open_model_file(path: Path) -> ModelFile:
    """Read a defended model file and verify its manifest, its hashes, its test tables and its purifier.

    Where there is no such path, the name of a file that ships with the package means that file.

    The hashes find damage and careless edits. They are no signature: who can replace the file can replace them.

    Raises:
        ModelFileError: If the file cannot be read, is no ONNX model, has no manifest, or was changed.
    """
    path = shipped_file(path)
    try:
        return _open(path)
    except (ValueError, TypeError) as error:  # tensors without a type or of another size, names that are no text
        raise ModelFileError(f"{path} is damaged ({error}); fetch or export it again") from error


def _open(path: Path) -> ModelFile:
    proto, data = _load(path)
    texts = [entry.value for entry in proto.metadata_props if entry.key == METADATA_KEY]
    if not texts:
        raise ModelFileError(
            f"{path} is an ONNX model without a defence; make one with: s2ap-defend harden --data FOLDER --onnx {path} "
            "-o model.onnx"
        )
    manifest = read_manifest(texts[0], source=path.name)
    if manifest.sparse_weights and data:
        raise ModelFileError(
            f"{path} has sparse weights and external data, expected one of them; export the model again"
        )
    _restore_weights(proto, manifest, path)
    for what, found, expected in (
        ("weights", _weights_on_disk(proto, path), manifest.weights_sha256),
        ("graph", graph_sha256(proto), manifest.graph_sha256),
    ):
        if found != expected:
            raise ModelFileError(
                f"{path} was changed after it was written: its {what} have SHA-256 {found[:12]}..., the manifest "
                f"says {expected[:12]}...; fetch or export the file again"
            )
    check_contract(proto, list(all_graphs(proto.graph)), manifest, path)
    size = sum(file.stat().st_size for file in (path, *data))
    return ModelFile(path, manifest, proto, size, tuple(file.name for file in data))


def _restore_weights(proto: ModelProto, manifest: Manifest, path: Path) -> None:
    """Undo what was done to weights to store them in less bytes."""
    graphs, said = list(all_graphs(proto.graph)), manifest.sparse_weights or 0
    try:
        if manifest.has_half_weights:
            lengthen(graphs)
        found = expand(graphs, most_bytes=MAX_EMBEDDED_BYTES) if said else 0
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelFileError(f"{path} is damaged: {error}; fetch or export it again") from error
    if found != said:
        raise ModelFileError(
            f"{path} holds {found} sparse tensors, its manifest says {said}; fetch or export the file again"
        )


def write_model_file(
    model: ModelProto,
    manifest: Manifest,
    path: Path,
    *,
    external_data: bool | None = None,
    golden: GoldenRecord | None = None,
) -> None:
    """Write a defended model file; nothing is left behind when writing fails.

    Args:
        model: The defended graph.
        manifest: Its manifest; the two hashes in it and its 2:4 stages are found anew, and so is the number of sparse
            weights, unless it is None: then all are stored dense. In external data they always are.
        path: The file to write.
        external_data: Whether weights go to a file of their own in the same folder; None decides by size. Its name
            holds their hash, so that whoever opens the model file while it is replaced finds the old pair or the new.
        golden: Golden inputs and what this graph answers to them; None: the file has none.

    Raises:
        ModelFileError: If the folder cannot be written, or the outputs are not those of version and manifest.
    """
    check_outputs(model, manifest, path)
    size = sum(map(tensor_bytes, all_tensors(model.graph)))
    external = size > MAX_EMBEDDED_BYTES if external_data is None else external_data
    hashes = {"weights_sha256": weights_sha256(model), "graph_sha256": graph_sha256(model)}
    written = ModelProto()
    written.CopyFrom(model)
    graphs = list(all_graphs(written.graph))
    two_four = two_four_stages(graphs)
    sparse = None if external or manifest.sparse_weights is None else compress(graphs)
    if manifest.has_half_weights and not external:
        shorten(graphs)
    sealed = manifest.model_copy(update={**hashes, "sparse_weights": sparse, "two_four": two_four})
    del written.metadata_props[:]
    written.metadata_props.add(key=METADATA_KEY, value=sealed.to_json())
    if golden is not None:
        written.metadata_props.add(key=GOLDEN_KEY, value=golden.model_dump_json())
    location = f"{path.name}.{hashes['weights_sha256'][:12]}.data"
    check_writable(path)
    folder = _temporary_folder(path)
    try:
        onnx.save_model(
            written,
            folder / path.name,
            save_as_external_data=external,
            location=location if external else None,
            size_threshold=THRESHOLD,
        )
        left = [data for data in own_data(path) if not external or data.name != location]
        for name in (location, path.name):
            if (folder / name).exists():
                (folder / name).replace(path.with_name(name))
        for data in left:
            data.unlink(missing_ok=True)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder(path: Path) -> Path:
    """A new folder next to `path`, whose own folder is made when missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror or error}") from error


def weights_sha256(model: ModelProto, folder: Path = Path()) -> str:
    """SHA-256 over every tensor of the model: name, type, shape and little-endian values, in file order.

    Args:
        model: Its external data is read a tensor at a time.
        folder: Where that lies.
    """
    digest = hashlib.sha256()
    for tensor in all_tensors(model.graph):
        array = tensor_array(tensor, folder)
        digest.update(f"{tensor.name}:{tensor.data_type}:{list(tensor.dims)}\n".encode())
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def graph_sha256(model: ModelProto) -> str:
    """SHA-256 over the graph without the values of its tensors, and over the operator sets."""
    bare = GraphProto()
    bare.CopyFrom(model.graph)
    for tensor in all_tensors(bare):
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


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those of all branches inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor of a graph, branches included, in the order of the file."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
        for inner in subgraphs(node):
            yield from all_tensors(inner)


def _load(path: Path) -> tuple[ModelProto, list[Path]]:
    """The model, external data left where it is, and the files of that."""
    try:
        check_there(path)
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (DecodeError, ValueError) as error:
        raise ModelFileError(f"{path} is truncated or no ONNX model; fetch or export it again") from error
    if not proto.graph.node:
        raise ModelFileError(f"{path} holds no ONNX graph; it is empty or truncated")
    data = [data_file(path, location) for location in locations(all_tensors(proto.graph))]
    return proto, data


def _weights_on_disk(proto: ModelProto, path: Path) -> str:
    try:
        return weights_sha256(proto, path.parent)
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        if locations(all_tensors(proto.graph)):
            raise _unreadable(path, error) from error
        raise


def _unreadable(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"the external data of {path} cannot be read: {error}; fetch or export both files again")
