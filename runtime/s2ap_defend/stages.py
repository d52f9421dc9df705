"""Cutting stages out of a defended model: the purifier, the classifier, members, as models of their own."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from s2ap_defend.decision_record import Purify
from s2ap_defend.errors import ModelFileError
from s2ap_defend.model_file import all_graphs, subgraphs
from s2ap_defend.sequential import SequentialTest

PURIFIER = "purifier"
CLASSIFIER = "classifier"
CLASSIFIER_AGAIN = "classifier_again"
"""Scope of the classifier's second run, on images that are purified only where they are suspicious. It is no stage."""

_OUTPUTS = {PURIFIER: ("purified", "reconstruction_error")}
_LOG_PROBABILITIES = ("log_probabilities",)
_SHAPED_LIKE = {"log_probabilities": "probabilities"}  # stage output -> output of the file with the same shape
_NUMBERS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.INT8}


@dataclass(frozen=True)
class StageSize:
    """Size of one stage.

    Attributes:
        nodes: Operators, those in branches included.
        parameters: Numbers in its tensors, zeros included: floating ones, and those of 8 bits.
        size_bytes: Bytes of all its tensors.
    """

    nodes: int
    parameters: int
    size_bytes: int


def member_scope(index: int) -> str:
    """Scope of the member that is asked at position `index`, from 0."""
    return f"member_{index:03d}"


def wave_sizes(test: SequentialTest, purify: Purify) -> tuple[int, ...]:
    """Sizes of the waves in a file's graph: the opening is one of its own where images are purified after it."""
    rest = test.waves[0] - test.opening
    return (test.opening, rest, *test.waves[1:]) if purify == "suspicious" and rest else test.waves


def cut_stage(proto: ModelProto, scope: str) -> ModelProto:
    """Cut one stage out of a defended model.

    The stage is the nodes named `scope/...`, in whatever graph they are, with the initialisers that they read. Its
    input is called `image`, [batch, C, H, W]; outputs are `purified` and `reconstruction_error` of the purifier and
    `log_probabilities` of any other stage. Weights are copied, the defended model stays as it is. Those that a branch
    reads from the graph around it become inputs with a default: engines do not rearrange them there either, and round
    as they do in the file.

    Args:
        proto: A defended model, weights in memory.
        scope: 'purifier', 'classifier', 'member_000', 'member_001', ..., or the second run of the classifier.

    Raises:
        ModelFileError: If the model has no such stage, or it cannot run alone.
    """
    graph, enclosing = _graph_of(proto, scope)
    nodes = [_copy(node) for node in graph.node if _scope(node) == scope]
    produced = {name for node in nodes for name in node.output}
    initializers = {tensor.name: tensor for outer in enclosing for tensor in outer.initializer}
    own = {tensor.name for tensor in graph.initializer}
    constants = {node.output[0]: node for outer in enclosing for node in outer.node if node.op_type == "Constant"}
    read = list(dict.fromkeys(name for node in nodes for name in reads(node) if name and name not in produced))
    inputs = [name for name in read if name not in initializers and name not in constants]
    if len(inputs) != 1:
        raise ModelFileError(
            f"stage {scope} reads {len(inputs)} values from outside ({', '.join(inputs[:3]) or 'none'}), expected the "
            "image alone; export the model again"
        )
    wanted = _OUTPUTS.get(scope, _LOG_PROBABILITIES)
    missing = [name for name in wanted if f"{scope}/{name}" not in produced]
    inner = produced - {f"{scope}/{name}" for name in wanted}  # declared shapes make the stage quick to load
    if missing:
        raise ModelFileError(f"stage {scope} has no value {scope}/{missing[0]}; export the model again")
    rename_nodes(nodes, {inputs[0]: "image"} | {f"{scope}/{name}": name for name in wanted})
    shared = [initializers[name] for name in read if name in initializers and name not in own]
    stage = helper.make_model(
        helper.make_graph(
            nodes=[_copy(constants[name]) for name in read if name in constants] + nodes,
            name=scope,
            inputs=[_value(proto, "image", "image"), *map(_with_default, shared)],
            outputs=[_value(proto, name, _SHAPED_LIKE.get(name, name)) for name in wanted],
            initializer=[initializers[name] for name in read if name in initializers],
            value_info=[value for outer in enclosing for value in outer.value_info if value.name in inner],
        ),
        opset_imports=proto.opset_import,
        functions=list(proto.functions),
        ir_version=proto.ir_version,
    )
    stage.producer_name = proto.producer_name
    return stage


def join_stages(stages: Mapping[str, ModelProto], behind: Collection[str] = ()) -> ModelProto:
    """Stages of one file, cut by `cut_stage`, by scope, as one model that reads the image once.

    Their outputs are called `SCOPE/NAME`. What several of them have of the file around them is there once.

    Args:
        stages: In the order in which they are computed.
        behind: Scopes of those that read what the purifier, which comes first then, makes of the image.
    """
    joined = ModelProto()
    joined.CopyFrom(next(iter(stages.values())))
    joined.graph.Clear()
    joined.graph.name = "+".join(stages)
    for scope, stage in stages.items():
        graph = GraphProto()
        graph.CopyFrom(stage.graph)
        names = {output.name: f"{scope}/{output.name}" for output in graph.output}
        if scope in behind:
            names["image"] = f"{PURIFIER}/{_OUTPUTS[PURIFIER][0]}"
        names |= {name: f"{scope}/{name}" for name in _constant_elsewhere(graph, joined.graph)}
        rename_nodes(graph.node, names)
        for kind in ("initializer", "input", "output"):
            for one in getattr(graph, kind):
                one.name = one.name if one.name == "image" else names.get(one.name, one.name)
        made = {node.output[0] for node in joined.graph.node}
        joined.graph.node.extend(node for node in graph.node if node.output[0] not in made)
        for kind in ("initializer", "input", "output", "value_info"):
            there = getattr(joined.graph, kind)
            known = {one.name for one in there}
            there.extend(one for one in getattr(graph, kind) if one.name not in known)
    return joined


def _constant_elsewhere(graph: GraphProto, joined: GraphProto) -> set[str]:
    """Tensors that are constants in one of two graphs and inputs with a default in the other: each keeps its own."""
    constants = [
        {tensor.name for tensor in one.initializer} - {value.name for value in one.input} for one in (graph, joined)
    ]
    inputs = [{value.name for value in one.input} for one in (graph, joined)]
    return (constants[0] & inputs[1]) | (constants[1] & inputs[0])


def stage_sizes(proto: ModelProto) -> dict[str, StageSize]:
    """Sizes of all stages by scope, in the order of the graph.

    Nodes outside any scope are left out, and the second run of the classifier, which has no weights of its own.
    """
    nodes: dict[str, int] = {}
    parameters: dict[str, int] = {}
    size_bytes: dict[str, int] = {}
    for graph in all_graphs(proto.graph):
        tensors = [(tensor.name, tensor) for tensor in graph.initializer]
        for node in graph.node:
            if _scope(node) == CLASSIFIER_AGAIN:
                continue
            nodes[_scope(node)] = nodes.get(_scope(node), 0) + 1
            tensors += [(node.name, attribute.t) for attribute in node.attribute if attribute.HasField("t")]
        for name, tensor in tensors:
            scope, elements = name.partition("/")[0], _elements(tensor)
            if tensor.data_type in _NUMBERS:
                parameters[scope] = parameters.get(scope, 0) + elements
            width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            size_bytes[scope] = size_bytes.get(scope, 0) + elements * width
    return {
        scope: StageSize(count, parameters.get(scope, 0), size_bytes.get(scope, 0))
        for scope, count in nodes.items()
        if scope
    }


def _graph_of(proto: ModelProto, scope: str) -> tuple[GraphProto, list[GraphProto]]:
    """The one graph with nodes of a scope, and the graphs around it from the outside in, itself included."""
    found = [chain for chain in _chains([proto.graph]) if any(_scope(node) == scope for node in chain[-1].node)]
    if len(found) == 1:
        return found[0][-1], found[0]
    if found:
        raise ModelFileError(f"stage {scope} is spread over {len(found)} graphs, expected one; export the model again")
    scopes = sorted({_scope(node) for graph in all_graphs(proto.graph) for node in graph.node} - {""})
    raise ModelFileError(f"the model has no stage {scope!r}; it has {', '.join(scopes) or 'none'}")


def _chains(chain: list[GraphProto]) -> Iterator[list[GraphProto]]:
    yield chain
    for node in chain[-1].node:
        for inner in subgraphs(node):
            yield from _chains([*chain, inner])


def _scope(node: NodeProto) -> str:
    scope, slash, _ = node.name.partition("/")
    return scope if slash else ""


def reads(node: NodeProto) -> Iterator[str]:
    """Names that a node reads from its graph and from those around it."""
    yield from node.input
    for inner in subgraphs(node):
        own = {tensor.name for tensor in inner.initializer} | {value.name for value in inner.input}
        own |= {name for n in inner.node for name in n.output}
        yield from (name for n in inner.node for name in reads(n) if name not in own)
        yield from (output.name for output in inner.output if output.name not in own)


def value_names(graph: GraphProto) -> Iterator[str]:
    """Names of all values of one graph, those of branches and loops in it apart; some more than once."""
    yield from (name for node in graph.node for name in (*node.input, *node.output) if name)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (value.name for value in (*graph.value_info, *graph.input, *graph.output))


def rename_nodes(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    """Rename what nodes read and give, inside branches and loops too, in place; names that are not mentioned stay."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in subgraphs(node):
            rename_values(inner, names)


def rename_values(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename all values of a graph as `rename_nodes` does."""
    rename_nodes(graph.node, names)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in (*graph.value_info, *graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def _value(proto: ModelProto, name: str, like: str) -> ValueInfoProto:
    """Declaration of a stage's input or output with the shape of one of the file's, the batch dynamic."""
    for declared in (*proto.graph.input, *proto.graph.output):
        if declared.name == like:
            dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in declared.type.tensor_type.shape.dim]
            return helper.make_tensor_value_info(name, declared.type.tensor_type.elem_type, ["batch", *dims[1:]])
    raise ModelFileError(f"the model declares no {like}; it is no defended model, export it again")


def _with_default(tensor: TensorProto) -> ValueInfoProto:
    """Declaration of an initialiser as an input."""
    return helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _copy(node: NodeProto) -> NodeProto:
    copied = NodeProto()
    copied.CopyFrom(node)
    return copied


def _elements(tensor: TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count
