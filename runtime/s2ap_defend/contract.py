"""Whether the graph of a model file is what its manifest says: outputs, tables, what members see, the purifier."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto

from s2ap_defend.errors import ModelFileError
from s2ap_defend.external_data import tensor_array
from s2ap_defend.half_weights import are_halves, weight_names
from s2ap_defend.manifest import Manifest
from s2ap_defend.precision_record import weights_precision
from s2ap_defend.sequential import tables_in_graph
from s2ap_defend.two_four import two_four_stages
from s2ap_defend.types import Verdicts

__all__ = ["BANK", "check_contract", "check_outputs"]

BANK = "purifier/bank"
_CLASSIFIER, _AGAIN = "classifier", "classifier_again"
_SEEN = re.compile(r"test/image|purifier/purified|test/wave_\d+/(raw|purified)")
_TABLE = re.compile(r"test/(?!constant_)[^/]+")


def check_contract(proto: ModelProto, graphs: Sequence[GraphProto], manifest: Manifest, path: Path) -> None:
    """Refuse a file whose graph contradicts its manifest.

    Args:
        proto: The model.
        graphs: Its graph and those of all branches inside it.
        manifest: What the file says of itself.
        path: The file, for messages.

    Raises:
        ModelFileError: With the first contradiction.
    """
    check_outputs(proto, manifest, path)
    _check_tables(proto, manifest, path)
    _check_sees(graphs, manifest, path)
    _check_again(graphs, path)
    _check_purifier(graphs, manifest, path)
    _check_precision(graphs, manifest, path)
    _check_two_four(graphs, manifest, path)


def check_outputs(proto: ModelProto, manifest: Manifest, path: Path) -> None:
    """Refuse a graph whose outputs are not those of the version, in the shapes of the manifest.

    Raises:
        ModelFileError: With the difference.
    """
    found, expected = tuple(output.name for output in proto.graph.output), Verdicts.FIELDS
    if found != expected:
        raise ModelFileError(
            f"{path}: a file of version {manifest.format_version} has the outputs {', '.join(expected)}; found "
            f"{', '.join(found) or 'none'}; export the model again"
        )
    a_class = (len(manifest.classes),)
    shapes = {"probabilities": a_class, "votes": a_class, "purified": manifest.input.shape}
    for output in proto.graph.output:
        dims = tuple(dim.dim_value for dim in output.type.tensor_type.shape.dim[1:])
        said = shapes.get(output.name, dims)
        if all(dims) and dims != said:  # 0: the graph leaves it open
            raise ModelFileError(
                f"{path}: the graph gives {output.name} [N, {', '.join(map(str, dims))}], by the manifest it is "
                f"[N, {', '.join(map(str, said))}]; export the model again"
            )


def _check_tables(proto: ModelProto, manifest: Manifest, path: Path) -> None:
    in_graph = {tensor.name: tensor for tensor in proto.graph.initializer if _TABLE.fullmatch(tensor.name)}
    said = {f"test/{name}": table for name, table in tables_in_graph(manifest.to_test()).items()}
    for name in sorted(in_graph.keys() | said.keys()):
        array = tensor_array(in_graph[name], path.parent) if name in in_graph else None
        expected = said.get(name)
        if array is None or expected is None or array.dtype != expected.dtype or not np.array_equal(array, expected):
            raise ModelFileError(f"{path}: the manifest's {name} differ from the graph's; export the model again")


def _check_sees(graphs: Sequence[GraphProto], manifest: Manifest, path: Path) -> None:
    """Compare what the manifest says of when to purify, and of what members see, with what stages read."""
    reads: dict[str, str] = {}
    for node in (node for graph in graphs for node in graph.node):
        scope = node.name.partition("/")[0]
        for seen in filter(None, map(_SEEN.fullmatch, node.input)):
            reads[scope] = "raw" if "image" in seen[0] or "raw" in seen[0] else "purified"
        if scope == _AGAIN:
            reads[scope] = "purified"
    purify = manifest.decision.purify
    if (_AGAIN in reads) != (purify == "suspicious"):
        does = "only what is suspicious" if _AGAIN in reads else "all images, or none"
        raise ModelFileError(f"{path}: the manifest says purify {purify!r}, the graph purifies {does}; export it again")
    for i, member in enumerate(manifest.members):
        found = reads.get(f"member_{i:03d}", "nothing")
        if found != member.sees:
            raise ModelFileError(
                f"{path}: the manifest says that member {i + 1} sees {member.sees!r}, in the graph it sees {found!r}; "
                "export the model again"
            )


def _check_again(graphs: Sequence[GraphProto], path: Path) -> None:
    """Compare weights that the classifier's second run has of its own with those of the first."""
    tensors = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    for name in sorted(tensors):
        scope, _, rest = name.partition("/")
        if scope != _AGAIN:
            continue
        first, again = tensors.get(f"{_CLASSIFIER}/{rest}"), tensor_array(tensors[name], path.parent)
        floating = again.dtype.kind == "f"
        if first is None or not np.array_equal(tensor_array(first, path.parent), again, equal_nan=floating):
            raise ModelFileError(
                f"{path}: the classifier's second run has other weights than the first ({name}); export the model again"
            )


def _check_purifier(graphs: Sequence[GraphProto], manifest: Manifest, path: Path) -> None:
    """Compare what the manifest says of the purifier with its stage: the bank, whether it is off, its precision."""
    scope = BANK.partition("/")[0] + "/"
    tensors = {tensor.name: tensor for graph in graphs for tensor in graph.initializer if tensor.name.startswith(scope)}
    convolutions = sum(
        node.name.startswith(scope) and node.op_type in {"Conv", "ConvTranspose"}
        for graph in graphs
        for node in graph.node
    )
    said = manifest.purifier
    bank = tensor_array(tensors[BANK], path.parent) if BANK in tensors else None
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
    precision = weights_precision(tensors.values())
    if not expected and precision != said.precision:
        found, expected = f"purifier weights in {precision}", f"precision {said.precision}"
    if expected:
        raise ModelFileError(
            f"{path}: the graph has {found}, the manifest's purifier says {expected}; export the model again"
        )


def _check_two_four(graphs: Sequence[GraphProto], manifest: Manifest, path: Path) -> None:
    """Count the groups of weights of every stage that the manifest calls 2:4."""
    wrong = sorted(set(manifest.two_four) - set(two_four_stages(graphs, path.parent))) if manifest.two_four else []
    if wrong:
        raise ModelFileError(
            f"{path}: the weights of {', '.join(wrong)} are not 2:4, the manifest says so; export the model again"
        )


def _check_precision(graphs: Sequence[GraphProto], manifest: Manifest, path: Path) -> None:
    """Compare what the manifest says that classifier and members compute in with their weights."""
    tensors: dict[str, list[TensorProto]] = {}
    for tensor in (tensor for graph in graphs for tensor in graph.initializer):
        tensors.setdefault(tensor.name.partition("/")[0], []).append(tensor)
    said = {f"member_{i:03d}": member.precision for i, member in enumerate(manifest.members)}
    said[_CLASSIFIER] = "float32" if manifest.precision is None else manifest.precision.classifier
    names = weight_names(node for graph in graphs for node in graph.node)
    for scope, precision in said.items():
        own = tensors.get(scope, ())
        found = weights_precision(own)
        if found == "float32" and precision == "float16_weights":
            weights = (tensor_array(tensor, path.parent) for tensor in own if tensor.name in names)
            found = precision if all(map(are_halves, weights)) else found
        if found != precision:
            raise ModelFileError(
                f"{path}: the weights of {scope} are {found}, the manifest says {precision}; export the model again"
            )
