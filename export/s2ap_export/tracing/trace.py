"""Networks and the purifier, gradients included, as ONNX stages.

torch.export refuses gradients inside a function, and torch.onnx.export needs minutes for an unrolled purifier. make_fx
records them in a second: the field once for each sigma, the descent around it with the field as one opaque operator.
The records are then written as ONNX by `s2ap_export.tracing.lowering`, which knows few operators and no batch size.

A stage is a model of its own with the input `image` and plain output names. Its nodes, inner values and initialisers
are named `scope/...`. On one engine an image gets the same bits in every batch. Classifiers that `lowering` does not
know are written by torch's exporter (`torch_exporter`), which promises less.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, fx, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from s2ap_defend.errors import RecipeError
from s2ap_export.graph.builder import BATCH, GraphBuilder
from s2ap_export.graph.rewrites import Rewrites
from s2ap_export.tracing.call import BatchDependenceError, Value, shape_of
from s2ap_export.tracing.decompositions import decompositions
from s2ap_export.tracing.in_place import OutOfPlace
from s2ap_export.tracing.lowering import lower
from s2ap_export.tracing.onnx_classifier import onnx_stage
from s2ap_export.tracing.torch_exporter import export_classifier
from s2ap_train.models.onnx_network import OnnxNetwork
from s2ap_train.purifier.purify import Purification, Score, descend, field

__all__ = ["frozen", "trace_classifier", "trace_images", "trace_purifier"]

TRACED_BATCH = 29  # any number but 0 and 1, which torch takes for constants


def trace_purifier(
    net: Score,
    bank: Tensor,
    config: Purification,
    input_shape: tuple[int, int, int],
    scope: str = "purifier",
    *,
    rewrites: Rewrites | None = None,
) -> ModelProto:
    """The purifier as a stage: `image` [N, C, H, W] -> `purified` [N, C, H, W], `reconstruction_error` [N].

    Args:
        net: The score model; a module is copied to the CPU in evaluation mode, in float32.
        bank: Noise directions [M, C, H, W].
        config: The purifier's hyper-parameters.
        input_shape: (C, H, W).
        scope: Prefix of all names.
        rewrites: What is done to the graph for speed, by default everything.

    Raises:
        RecipeError: If the bank does not fit, or the score model contains an operator that cannot be exported.

    When the purifier is off, `purified` is the image and the error zero; the file then holds no score model.
    """
    if tuple(bank.shape) != (config.bank_size, *input_shape):
        raise RecipeError(
            f"the bank has shape {tuple(bank.shape)}, expected {(config.bank_size, *input_shape)}; make it with "
            "hadamard_bank(config.bank_size, input_shape, config.bank_seed)"
        )
    score = frozen(net) if isinstance(net, nn.Module) else net
    directions = bank.detach().cpu().float()
    build = _builder(scope, score, rewrites)
    traced_descent = _traced(lambda x: descend(_opaque_field, x, config), input_shape)
    if config.off:
        rows = build.node("Shape", ["image"], 1, {"start": 0, "end": 1})
        results: list[Value] = ["image", build.op("ConstantOfShape", *rows)]
        return _stage(build, traced_descent, results, ["purified", "reconstruction_error"])

    def field_at(sigma: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return lambda z: field(score, z, sigma, directions, config.mode)

    traced_fields = {sigma: _traced(field_at(sigma), input_shape) for sigma in sorted(set(config.sigmas))}
    build.constant(directions.numpy(), "bank")

    def inlined(z: str, sigma: float) -> Sequence[Value]:
        return lower(traced_fields[sigma], z, build)

    opaque = torch.ops.s2ap_export.opaque_field.default
    results = lower(traced_descent, "image", build, inlined={opaque: inlined})
    return _stage(build, traced_descent, results, ["purified", "reconstruction_error"])


def trace_images(
    function: Callable[[Tensor], Tensor], input_shape: tuple[int, int, int], scope: str = "purifier"
) -> ModelProto:
    """Any function of images as a stage: `image` [N, C, H, W] -> `purified` [N, C, H, W].

    Args:
        function: Images -> images, of plain torch operators on the CPU, in float32; gradients inside it (torch.func)
            are recorded with it. Each image on its own.
        input_shape: (C, H, W).
        scope: Prefix of all names.

    Raises:
        RecipeError: If the function contains an operator that cannot be exported, or returns another shape.
    """
    traced = _traced(function, input_shape)
    build = GraphBuilder(scope)
    stage = _stage(build, traced, lower(traced, "image", build), ["purified"])
    purified = [dim.dim_value for dim in stage.graph.output[0].type.tensor_type.shape.dim[1:]]
    if purified != list(input_shape):
        raise RecipeError(f"stage {scope} turns images {list(input_shape)} into {purified}; expected the same shape")
    return stage


def trace_classifier(module: nn.Module, input_shape: tuple[int, int, int], scope: str) -> ModelProto:
    """A classifier as a stage: `image` [N, C, H, W] -> `log_probabilities` [N, K], float32.

    Args:
        module: Images -> logits; it is copied to the CPU in evaluation mode, in float32. Fold batch normalisation
            before (`s2ap_train.models.fold_batch_norm`): here it becomes a product and a sum.
        input_shape: (C, H, W).
        scope: Prefix of all names.

    Raises:
        RecipeError: If neither this trace nor torch's exporter can write the module, or it reads other images of
            the batch.

    A classifier that is an ONNX file keeps its graph (`onnx_classifier`). Where the trace meets an operator it does not
    know, torch's exporter writes the stage (`torch_exporter`, what it does not promise included). `producer_name`
    tells the two apart.
    """
    classifier = frozen(module)
    if isinstance(classifier, OnnxNetwork):
        return onnx_stage(classifier, input_shape, scope)
    with _plain_attention():
        try:
            return _traced_classifier(classifier, input_shape, scope)
        except BatchDependenceError:
            raise
        except Exception as ours:  # torch has no types for what its tracer cannot follow
            try:
                return export_classifier(classifier, input_shape, scope)
            except RecipeError as theirs:
                known = isinstance(ours, RecipeError) and theirs.__cause__ is not None  # both say what they lack
                also = f"; {ours}" if known else ""
                raise RecipeError(f"cannot export this {type(module).__name__}: {theirs}{also}") from theirs


def _traced_classifier(classifier: nn.Module, input_shape: tuple[int, int, int], scope: str) -> ModelProto:
    def log_probabilities(images: Tensor) -> Tensor:
        with OutOfPlace():
            logits: Tensor = classifier(images)
        return torch.log_softmax(logits, dim=1)

    traced = _traced(torch.func.functionalize(log_probabilities), input_shape)  # ReLU(inplace=True) and +=
    build = _builder(scope, classifier)
    return _stage(build, traced, lower(traced, "image", build), ["log_probabilities"])


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in plain operators, not in the one that torch takes for it in evaluation mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def frozen(module: nn.Module) -> nn.Module:
    """A copy of the network as it is exported: CPU, float32, evaluation mode, plain layout, no gradients of weights."""
    copied = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    return copied.to(memory_format=torch.contiguous_format)


@torch.library.custom_op("s2ap_export::opaque_field", mutates_args=())
def _opaque_field(z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Stands for the field while the descent around it is traced; it has the field's shapes, and no values."""
    return torch.zeros_like(z), z.new_zeros(z.shape[0])


@_opaque_field.register_fake
def _(z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(z), z.new_empty(z.shape[0])


def _traced(function: Callable[[Tensor], Any], input_shape: tuple[int, int, int]) -> fx.GraphModule:
    """Record a function of images whose number, and nothing else, is symbolic."""
    example = torch.full((TRACED_BATCH, *input_shape), 0.5)
    sizes: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(
        [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * len(input_shape)]
    )
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    fake = mode.from_tensor(example, symbolic_context=sizes, source=ConstantSource("image"))
    record = make_fx(function, decomposition_table=decompositions(), _allow_non_fake_inputs=True)
    with warnings.catch_warnings(), mode, torch.no_grad():  # with gradients, torch would keep second ones possible
        warnings.simplefilter("ignore")  # of torch's own making
        traced = record(fake)
    traced.graph.eliminate_dead_code()
    if isinstance(fake.shape[0], int) or fake.shape[0].node.maybe_as_int() is not None:
        raise RecipeError(
            "cannot export a network in whose trace the batch size is a number: its forward method, or an operator of "
            "torch such as padding, reads it as one"
        )
    return traced


def _builder(scope: str, weights: object, rewrites: Rewrites | None = None) -> GraphBuilder:
    """A graph in which weights that enter unchanged keep their names."""
    build = GraphBuilder(scope, rewrites)
    if isinstance(weights, nn.Module):
        for name, parameter in weights.named_parameters():
            build.constant(parameter.numpy(), name)
    return build


def _stage(build: GraphBuilder, traced: fx.GraphModule, results: Sequence[Value], names: Sequence[str]) -> ModelProto:
    placeholder, output = (next(n for n in traced.graph.nodes if n.op == op) for op in ("placeholder", "output"))
    returned = output.args[0]
    nodes = list(returned) if isinstance(returned, (list, tuple)) else [returned]
    outputs = []
    for node, value, name in zip(nodes, results, names, strict=True):
        if not isinstance(value, str) or shape_of(node.meta["val"])[0] != BATCH:
            raise RecipeError(f"stage {build.scope}: {name} does not depend on the image; it cannot be exported")
        outputs.append((build.op("Identity", value) if value == "image" else value, _declared(name, node)))
    model = build.model([_declared("image", placeholder)], outputs)
    onnx.checker.check_model(model, full_check=True)
    return model


def _declared(name: str, node: fx.Node) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape_of(node.meta["val"]))
