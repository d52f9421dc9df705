"""Whether a file is data only: standard operators, no pickle, nothing that names a place on somebody's machine."""

import io
import pickletools
import re
from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from s2ap_defend.model_file import all_graphs, all_tensors

__all__ = ["foreign_content"]

_DOMAINS = {"", "ai.onnx"}
_ROOTS = (
    "Users|Volumes|boot|content|data|dev|etc|home|media|mnt|opt|private|proc|root|srv|sys|tmp|usr|var|work|workspace"
)
_PLACE = re.compile(
    rf"(?<![\w.:/-])(?:/(?:{_ROOTS})/[\w.~-]+|~/[\w.-]+|[A-Za-z]:\\\w+|\\\\\w+\\\w+)|\b\w{{2,10}}://\S+"
)
"""An absolute path below a usual root, of Unix or Windows, or an address."""
_ARCHIVE = b"PK\x03\x04"
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_BYTES = {TensorProto.UINT8, TensorProto.INT8, TensorProto.STRING}


def foreign_content(proto: ModelProto) -> list[str]:
    """What a model holds that no defended file may hold, for people; empty: nothing.

    Args:
        proto: Weights in memory.
    """
    return list(dict.fromkeys([*_operators(proto), *_places(proto), *_code(proto)]))


def _operators(proto: ModelProto) -> Iterator[str]:
    for opset in proto.opset_import:
        if opset.domain not in _DOMAINS:
            yield f"operators of {opset.domain!r}"
    for graph in all_graphs(proto.graph):
        for node in graph.node:
            if node.domain not in _DOMAINS:
                yield f"operator {node.domain}.{node.op_type} ({node.name or 'without a name'})"
    if proto.functions:
        yield f"{len(proto.functions)} functions, the first is {proto.functions[0].name}"


def _places(proto: ModelProto) -> Iterator[str]:
    for where, text in _texts(proto):
        found = _PLACE.search(text)
        if found:
            yield f"{found[0]!r} in {where}"


def _texts(proto: ModelProto) -> Iterator[tuple[str, str]]:
    """Every text of a model, and where it stands."""
    yield from (("the producer", text) for text in (proto.producer_name, proto.producer_version, proto.domain))
    yield "the description", proto.doc_string
    yield from ((f"the metadata {entry.key}", f"{entry.key} {entry.value}") for entry in proto.metadata_props)
    for graph in all_graphs(proto.graph):
        things: list[GraphProto | NodeProto | TensorProto | ValueInfoProto] = [graph, *graph.node, *graph.initializer]
        for thing in (*things, *graph.input, *graph.output, *graph.value_info):
            where = thing.name or "a node"
            yield where, f"{thing.name} {thing.doc_string}"
            yield from ((where, f"{entry.key} {entry.value}") for entry in thing.metadata_props)
        for node in graph.node:
            texts = (text for one in node.attribute for text in (one.s, *one.strings))
            yield from ((node.name, text.decode(errors="replace")) for text in texts)
    for tensor in all_tensors(proto.graph):
        yield from ((tensor.name, text.decode(errors="replace")) for text in tensor.string_data)
        yield from ((tensor.name, entry.value) for entry in tensor.external_data)


def _code(proto: ModelProto) -> Iterator[str]:
    for entry in proto.metadata_props:
        if is_code(entry.value.encode()):
            yield f"a pickle or archive in the metadata {entry.key}"
    for graph in all_graphs(proto.graph):
        for node in graph.node:
            if any(is_code(data) for one in node.attribute for data in (one.s, *one.strings)):
                yield f"a pickle or archive in {node.name}"
    for tensor in all_tensors(proto.graph):
        held = (tensor.raw_data, *tensor.string_data) if tensor.data_type in _BYTES else ()
        if any(is_code(data) for data in held):
            yield f"a pickle or archive in {tensor.name}"


def is_code(data: bytes) -> bool:
    """Whether bytes are a whole pickle, or begin as an archive such as torch.save writes; nothing is executed."""
    if data.startswith(_ARCHIVE):
        return True
    if not _PICKLE.match(data):
        return False
    try:
        for _ in pickletools.genops(io.BytesIO(data)):
            pass
    except (ValueError, IndexError, UnicodeDecodeError):  # chance: these are numbers
        return False
    return True
