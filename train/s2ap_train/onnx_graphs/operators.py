"""ONNX operators as torch functions, each differentiable wherever ONNX defines a smooth or piecewise smooth map.

The set is what exported stages of a defended model contain: networks, and gradients of networks that were traced into
the graph. Integer tensors (shapes, axes, indices) live on the CPU, whatever the device of the images.
"""

from collections.abc import Callable

import torch
from onnx import TensorProto
from torch import Tensor

from s2ap_train.compute.bfloat16 import widened
from s2ap_train.onnx_graphs.activations import ACTIVATIONS
from s2ap_train.onnx_graphs.normalising import NORMALISATIONS
from s2ap_train.onnx_graphs.quantisation import QUANTISATION, STRAIGHT_THROUGH_QUANTISATION
from s2ap_train.onnx_graphs.rearranging import REARRANGING, Attributes, Builder, Function, ints
from s2ap_train.onnx_graphs.resizing import RESIZING
from s2ap_train.onnx_graphs.windows import WINDOWS

DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BOOL: torch.bool,
}
INTEGERS = {
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
}
"""Integer types by their number in ONNX; a cast to one rounds towards zero."""


def _gemm(attributes: Attributes) -> Function:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    left, right = attributes.get("transA", 0), attributes.get("transB", 0)

    def apply(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.t() if left else a, b.t() if right else b
        if c is not None and alpha == 1.0 and beta == 1.0:
            return torch.addmm(c, a, b)
        product: Tensor = alpha * torch.mm(a, b)
        return product if c is None else product + beta * c

    return apply


def _softmax(function: Function) -> Callable[[Attributes], Function]:
    def build(attributes: Attributes) -> Function:
        axis = attributes.get("axis", -1)
        return lambda x: function(widened(x), dim=axis)

    return build


def _reduce(function: Function) -> Callable[[Attributes], Function]:
    """A reduction over axes that are an attribute (old operator sets) or the second input."""

    def build(attributes: Attributes) -> Function:
        keep, fixed = bool(attributes.get("keepdims", 1)), attributes.get("axes")
        no_op = bool(attributes.get("noop_with_empty_axes", 0))

        def apply(x: Tensor, axes: Tensor | None = None) -> Tensor:
            chosen = list(fixed) if fixed is not None else (ints(axes) if axes is not None else [])
            if not chosen and no_op:
                return x
            reduced: Tensor = function(x, chosen or list(range(x.dim())), keep)
            return reduced

        return apply

    return build


def _reduce_product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=keep)
    return x


def _arg(function: Function) -> Callable[[Attributes], Function]:
    def build(attributes: Attributes) -> Function:
        axis, keep = attributes.get("axis", 0), bool(attributes.get("keepdims", 1))
        return lambda x: function(x, dim=axis, keepdim=keep)

    return build


def _cast(attributes: Attributes) -> Function:
    target = (DTYPES | INTEGERS)[attributes["to"]]
    return lambda x: x if x.dtype == target else x.to(target)


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _einsum(attributes: Attributes) -> Function:
    equation = attributes["equation"].decode()
    return lambda *tensors: torch.einsum(equation, *tensors)


def _top_k(attributes: Attributes) -> Function:
    axis, largest = attributes.get("axis", -1), bool(attributes.get("largest", 1))

    def apply(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        values, places = torch.topk(x, ints(count)[0], dim=axis, largest=largest)
        return values, places.cpu()

    return apply


def _triangle(attributes: Attributes) -> Function:
    function = torch.triu if attributes.get("upper", 1) else torch.tril
    return lambda x, diagonal=None: function(x, 0 if diagonal is None else ints(diagonal)[0])


def _fold(function: Function) -> Callable[[Attributes], Function]:
    """An operator of any number of inputs, applied from left to right."""

    def apply(first: Tensor, *rest: Tensor) -> Tensor:
        for other in rest:
            first = function(first, other)
        return first

    return lambda _: apply


def _mean(*values: Tensor) -> Tensor:
    return sum(values[1:], values[0]) / len(values)


def _cumulative_sum(attributes: Attributes) -> Function:
    exclusive, reverse = attributes.get("exclusive", 0), attributes.get("reverse", 0)

    def apply(x: Tensor, axis: Tensor) -> Tensor:
        along = ints(axis.reshape(-1))[0]
        seen = x.flip(along) if reverse else x
        sums = seen.cumsum(along) - (seen if exclusive else 0)
        return sums.flip(along) if reverse else sums

    return apply


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition.to(a.device), a, b.to(a.device))


def _plain(function: Function) -> Callable[[Attributes], Function]:
    return lambda _: function


def _straight_through(function: Function) -> Builder:
    """An operator whose first input passes its gradient on unchanged; values stay as they are."""

    def apply(x: Tensor, *others: Tensor | None) -> Tensor:
        passed: Tensor = x + (function(x, *others) - x).detach()
        return passed

    return _plain(apply)


_ELEMENTWISE: dict[str, Function] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Asin": torch.asin,
    "Atan": torch.atan,
    "Add": torch.add,
    "And": torch.logical_and,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "IsInf": torch.isinf,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
}

OPERATORS: dict[str, Builder] = (
    REARRANGING
    | RESIZING
    | ACTIVATIONS
    | QUANTISATION
    | WINDOWS
    | NORMALISATIONS
    | {
        "ArgMax": _arg(torch.argmax),
        "ArgMin": _arg(torch.argmin),
        "Cast": _cast,
        "Clip": _plain(_clip),
        "Div": _plain(_divide),
        "Einsum": _einsum,
        "Gemm": _gemm,
        "LogSoftmax": _softmax(torch.log_softmax),
        "CumSum": _cumulative_sum,
        "Max": _fold(torch.maximum),
        "Mean": _plain(_mean),
        "Min": _fold(torch.minimum),
        "Mod": _plain(torch.remainder),
        "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
        "ReduceL2": _reduce(lambda x, axes, keep: x.norm(dim=axes, keepdim=keep)),
        "ReduceLogSum": _reduce(lambda x, axes, keep: x.sum(axes, keep).log()),
        "ReduceLogSumExp": _reduce(lambda x, axes, keep: x.logsumexp(axes, keep)),
        "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
        "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
        "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
        "ReduceProd": _reduce(_reduce_product),
        "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
        "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
        "Softmax": _softmax(torch.softmax),
        "Sum": _fold(lambda a, b: a + b),
        "TopK": _top_k,
        "Trilu": _triangle,
        "Where": _plain(_where),
    }
    | {name: _plain(function) for name, function in _ELEMENTWISE.items()}
)
"""By operator name: what makes the torch function from the node's attributes."""

STRAIGHT_THROUGH_OPERATORS: dict[str, Builder] = (
    OPERATORS
    | STRAIGHT_THROUGH_QUANTISATION
    | {
        "Ceil": _straight_through(torch.ceil),
        "Clip": _straight_through(_clip),
        "Floor": _straight_through(torch.floor),
        "Round": _straight_through(torch.round),
        "Sign": _straight_through(torch.sign),
    }
)
"""The same, but what is constant in pieces passes gradients on unchanged: an attacker's way past clamped or rounded
pixels (Athalye et al. 2018, arXiv 1802.00420, section 4.1)."""
