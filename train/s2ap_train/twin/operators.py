"""ONNX operators as torch functions, each differentiable wherever ONNX defines a smooth or piecewise smooth map.

The set is what exported stages of a defended model contain: networks, and gradients of networks that were traced into
the graph. Integer tensors (shapes, axes, indices) live on the CPU, whatever the device of the images.
"""

from collections.abc import Callable, Sequence

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from s2ap_train.twin.rearranging import REARRANGING, Attributes, Builder, Function, ints

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


def _conv(attributes: Attributes) -> Function:
    _no_auto_pad(attributes)
    stride, dilation = attributes.get("strides"), attributes.get("dilations")
    groups, pads = attributes.get("group", 1), attributes.get("pads")

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.dim() - 2
        padded, padding = _padding(x, pads, rank)
        function = functional.conv2d if rank == 2 else functional.conv1d
        return function(padded, weight, bias, stride or 1, padding, dilation or 1, groups)

    return apply


def _conv_transpose(attributes: Attributes) -> Function:
    _no_auto_pad(attributes)
    pads = attributes.get("pads", [0, 0, 0, 0])
    if len(pads) != 4 or pads[:2] != pads[2:] or "output_shape" in attributes:
        raise ValueError(f"ConvTranspose with pads {pads} or output_shape")
    stride, dilation = attributes.get("strides", 1), attributes.get("dilations", 1)
    output_padding, groups = attributes.get("output_padding", 0), attributes.get("group", 1)

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.conv_transpose2d(x, weight, bias, stride, pads[:2], output_padding, groups, dilation)

    return apply


def _max_pool(attributes: Attributes) -> Function:
    _no_auto_pad(attributes)
    kernel, stride = attributes["kernel_shape"], attributes.get("strides", 1)
    dilation, ceil = attributes.get("dilations", 1), bool(attributes.get("ceil_mode", 0))
    pads = attributes.get("pads")

    def apply(x: Tensor) -> Tensor:
        padded, padding = _padding(x, pads, len(kernel), value=-torch.inf)
        return functional.max_pool2d(padded, kernel, stride, padding, dilation, ceil)

    return apply


def _average_pool(attributes: Attributes) -> Function:
    _no_auto_pad(attributes)
    kernel, stride = attributes["kernel_shape"], attributes.get("strides", 1)
    pads, ceil = attributes.get("pads", [0, 0, 0, 0]), bool(attributes.get("ceil_mode", 0))
    if len(pads) != 4 or pads[:2] != pads[2:]:
        raise ValueError(f"AveragePool with pads {pads}")
    include = bool(attributes.get("count_include_pad", 0))
    return lambda x: functional.avg_pool2d(x, kernel, stride, pads[:2], ceil, include)


def _no_auto_pad(attributes: Attributes) -> None:
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ValueError(f"auto_pad {attributes['auto_pad'].decode()}")


def _padding(x: Tensor, pads: Sequence[int] | None, rank: int, value: float = 0.0) -> tuple[Tensor, list[int]]:
    if pads is None:
        return x, [0] * rank
    before, after = list(pads[:rank]), list(pads[rank:])
    if before == after:
        return x, before
    flat = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    return functional.pad(x, flat, value=value), [0] * rank


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


def _instance_norm(attributes: Attributes) -> Function:
    eps = attributes.get("epsilon", 1e-5)
    return lambda x, scale, bias: functional.instance_norm(x, weight=scale, bias=bias, eps=eps)


def _batch_norm(attributes: Attributes) -> Function:
    eps = attributes.get("epsilon", 1e-5)
    return lambda x, scale, bias, mean, var: functional.batch_norm(x, mean, var, scale, bias, eps=eps)


def _group_norm(attributes: Attributes) -> Function:
    eps, groups = attributes.get("epsilon", 1e-5), attributes["num_groups"]
    return lambda x, scale, bias: functional.group_norm(x, groups, scale, bias, eps)


def _softmax(function: Function) -> Callable[[Attributes], Function]:
    def build(attributes: Attributes) -> Function:
        axis = attributes.get("axis", -1)
        return lambda x: function(x, dim=axis)

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


def _fold(function: Function) -> Callable[[Attributes], Function]:
    """An operator of any number of inputs, applied from left to right."""

    def apply(first: Tensor, *rest: Tensor) -> Tensor:
        for other in rest:
            first = function(first, other)
        return first

    return lambda _: apply


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


def _leaky_relu(attributes: Attributes) -> Function:
    slope = attributes.get("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, slope)


def _gelu(attributes: Attributes) -> Function:
    approximate = attributes.get("approximate", b"none").decode()
    return lambda x: functional.gelu(x, approximate=approximate)


_ELEMENTWISE: dict[str, Function] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
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
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": functional.softplus,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
}

OPERATORS: dict[str, Builder] = (
    REARRANGING
    | {
        "ArgMax": _arg(torch.argmax),
        "ArgMin": _arg(torch.argmin),
        "AveragePool": _average_pool,
        "BatchNormalization": _batch_norm,
        "Cast": _cast,
        "Clip": _plain(_clip),
        "Conv": _conv,
        "ConvTranspose": _conv_transpose,
        "Div": _plain(_divide),
        "Gelu": _gelu,
        "Gemm": _gemm,
        "GlobalAveragePool": _plain(lambda x: x.mean(dim=tuple(range(2, x.dim())), keepdim=True)),
        "GroupNormalization": _group_norm,
        "InstanceNormalization": _instance_norm,
        "LeakyRelu": _leaky_relu,
        "LogSoftmax": _softmax(torch.log_softmax),
        "Max": _fold(torch.maximum),
        "MaxPool": _max_pool,
        "Min": _fold(torch.minimum),
        "Mod": _plain(torch.remainder),
        "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
        "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
        "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
        "ReduceProd": _reduce(_reduce_product),
        "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
        "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
        "Relu": _plain(torch.relu),
        "Softmax": _softmax(torch.softmax),
        "Sum": _fold(lambda a, b: a + b),
        "Where": _plain(_where),
    }
    | {name: _plain(function) for name, function in _ELEMENTWISE.items()}
)
"""By operator name: what makes the torch function from the node's attributes."""

STRAIGHT_THROUGH_OPERATORS: dict[str, Builder] = OPERATORS | {
    "Ceil": _straight_through(torch.ceil),
    "Clip": _straight_through(_clip),
    "Floor": _straight_through(torch.floor),
    "Round": _straight_through(torch.round),
    "Sign": _straight_through(torch.sign),
}
"""The same, but what is constant in pieces passes gradients on unchanged: an attacker's way past clamped or rounded
pixels (Athalye et al. 2018, arXiv 1802.00420, section 4.1)."""
