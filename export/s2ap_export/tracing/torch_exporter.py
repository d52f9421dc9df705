"""Classifiers written as ONNX by torch's own exporter, for networks with operators that `lowering` does not know.

It knows nearly all of torch, and takes seconds where `trace` takes one. It follows a forward method with symbolic
values (torch.export), so a branch that depends on the image is refused, not frozen as it went for one image. What it
writes keeps no promise by itself: whether batches are dynamic is checked here, what it answers by
`s2ap_export.hardening.parity`. It computes products of matrices as such, for which ONNX Runtime may take other kernels
at other batch sizes: an image then has the same answer in every batch up to rounding, not to the last bit.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from onnx import AttributeProto, ModelProto, TensorProto, helper
from onnx.inliner import inline_local_functions
from torch import Tensor, nn
from torch.export import Dim

from s2ap_defend.errors import RecipeError
from s2ap_defend.stages import rename_values
from s2ap_export.graph.builder import BATCH, IR_VERSION, OPSET

__all__ = ["WRITER", "export_classifier"]

WRITER = "torch.onnx"
"""Producer of a stage that torch's exporter wrote."""

_EXAMPLES = 3  # images; any number that torch does not take for a constant
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_OUTPUT = "log_probabilities"


def export_classifier(classifier: nn.Module, input_shape: tuple[int, int, int], scope: str) -> ModelProto:
    """A classifier as a stage, like `s2ap_export.tracing.trace.trace_classifier`, of which it takes the arguments.

    Args:
        classifier: Images -> logits, on the CPU, in evaluation mode, in float32, its weights without gradients.
        input_shape: (C, H, W).
        scope: Prefix of all names.

    Raises:
        RecipeError: If the exporter cannot write the network, or what it writes holds a fixed batch, branches, random
            numbers or operators of its own.
    """
    model = _exported(_LogProbabilities(classifier).eval(), input_shape)
    _check(model)
    graph = model.graph
    inner = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    inner -= {_OUTPUT}
    rename_values(graph, {name: f"{scope}/{name.removeprefix('classifier.')}" for name in inner if name})
    for i, node in enumerate(graph.node):
        node.name = f"{scope}/{node.op_type.lower()}_{i}"
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    result = _answered(graph.output[0])
    stage = helper.make_model(
        helper.make_graph(
            list(graph.node),
            scope,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [BATCH, *input_shape])],
            [helper.make_tensor_value_info(_OUTPUT, TensorProto.FLOAT, [BATCH, result])],
            initializer=list(graph.initializer),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name=WRITER,
    )
    try:
        onnx.checker.check_model(stage, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:  # types that do not agree
        raise RecipeError(_reason(error)) from error
    return stage


class _LogProbabilities(nn.Module):
    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> Tensor:
        return torch.log_softmax(self.classifier(image), dim=1)


def _exported(module: nn.Module, input_shape: tuple[int, int, int]) -> ModelProto:
    example = torch.rand((_EXAMPLES, *input_shape), generator=torch.Generator().manual_seed(0))
    try:
        with _silent(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                input_names=["image"],
                output_names=[_OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({0: Dim(BATCH)},),
                verbose=False,
            )
    except Exception as error:  # of the exporter, of torch, or of the network
        raise RecipeError(_reason(error)) from error
    model: ModelProto = program.model_proto  # type: ignore[union-attr]  # None where it writes to a path
    return inline_local_functions(model) if model.functions else model


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What torch tells its developers about an export, kept from the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """What went wrong first, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if "data-dependent" in line:
        return "its forward method takes a branch, a size or a number from the values of an image; write it without"
    return f"torch.onnx.export says {type(error).__name__}: {line}"


def _check(model: ModelProto) -> None:
    """Refuse what no stage may be, whatever it computes."""
    graph = model.graph
    dims = graph.input[0].type.tensor_type.shape.dim
    if not dims[0].dim_param or len(graph.input) != 1:
        raise RecipeError(
            f"it fixes the number of images, {dims[0].dim_value or _EXAMPLES} in this trace: it makes the batch size a "
            "Python number, as int(x.shape[0]) and a loop over the images do; take x.shape[0] as it is, x.flatten(1) "
            "or -1"
        )
    for node in graph.node:
        if node.op_type in _RANDOM:
            raise RecipeError(
                f"it takes random numbers in evaluation mode (operator {node.op_type}); an answer must be the same "
                "every time"
            )
        if node.domain not in {"", "ai.onnx"}:
            raise RecipeError(f"it needs the operator {node.domain}.{node.op_type}, which is not of standard ONNX")
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
            raise RecipeError(f"it holds a branch or a loop (operator {node.op_type}); write its forward without")
    opset = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
    if opset != OPSET:
        raise RecipeError(f"it needs operator set {opset} of ONNX, a model file has {OPSET}")
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer):
        raise RecipeError("its weights are too large for one file (2 GB)")


def _answered(output: onnx.ValueInfoProto) -> int:
    dims = output.type.tensor_type.shape.dim
    if len(dims) != 2 or not dims[1].dim_value:
        found = [dim.dim_value or dim.dim_param for dim in dims]
        raise RecipeError(f"it answers values of shape {found}, expected logits [{BATCH}, classes]")
    return dims[1].dim_value
