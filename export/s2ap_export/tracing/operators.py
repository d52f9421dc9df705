"""Torch operators (aten, as make_fx records them) as ONNX nodes.

Weights are constants: whatever does not depend on the image was computed before it comes here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_export.graph.builder import Attribute
from s2ap_export.tracing.call import BatchDependenceError, Call, Value
from s2ap_export.tracing.layers import (
    adaptive_average_pool,
    average_pool,
    convolution,
    linear,
    linear_with_bias,
    max_pool,
    reduction,
)
from s2ap_export.tracing.norms import channel_constant, group_norm, per_channel

__all__ = ["OPERATORS"]

aten = torch.ops.aten

NEUTRAL_LEFT = {"Add": 0, "Mul": 1}
NEUTRAL_RIGHT = NEUTRAL_LEFT | {"Sub": 0, "Div": 1}
"""The constant that changes nothing on the left or on the right of an operator."""


def _binary(operator: str) -> Callable[..., Value]:
    def lower(
        call: Call, a: Value | float, b: Value | float, *, alpha: float = 1, rounding_mode: object = None
    ) -> Value:
        if alpha != 1 or rounding_mode is not None:
            raise RecipeError(f"cannot export {operator} with alpha {alpha} and rounding_mode {rounding_mode}")
        for value, other, sides in ((a, b, NEUTRAL_RIGHT), (b, a, NEUTRAL_LEFT)):
            if isinstance(value, str) and not isinstance(other, str) and operator in sides:
                neutral = bool((torch.as_tensor(other) == sides[operator]).all())
                unchanged = call.inputs[0 if value is a else 1] == call.shape
                if neutral and unchanged:
                    return value
                constant = channel_constant(other, len(call.shape))
                if constant is not None and unchanged and operator == "Mul":
                    return per_channel(call, value, constant)
                if constant is not None and value in call.build.products and operator == "Add":
                    source, scale = call.build.products[value]
                    return per_channel(call, source, scale, constant)
        return call.op(operator, a, b)

    return lower


def _unary(operator: str, **attributes: Attribute) -> Callable[..., Value]:
    return lambda call, x: call.op(operator, x, **attributes)


def _same(_: Call, x: Value, *__: object, **___: object) -> Value:
    return x


def _copied(call: Call, _: Value, x: Value, *__: object) -> Value:
    if call.inputs.get(1) != call.shape:
        raise RecipeError("cannot export a copy of a value into a larger one; write it with torch.where or expand")
    return x


def _reshape(call: Call, x: str, *_: object) -> Value:
    return call.build.reshape(x, call.shape)


def _zeros(call: Call, *_: object) -> Tensor:
    """Zeros for each image: a constant that is broadcast over the batch."""
    return torch.zeros([1 if isinstance(size, str) else size for size in call.shape])


def _rsqrt(call: Call, x: str) -> Value:
    return call.op("Reciprocal", call.op("Sqrt", x))


def _power(call: Call, x: str, exponent: float) -> Value:
    return call.op("Mul", x, x) if exponent == 2 else call.op("Pow", x, exponent)


def _clip(call: Call, x: str, low: float | None = None, high: float | None = None) -> Value:
    return call.build.op("Clip", x, *["" if bound is None else call.name(bound) for bound in (low, high)])


def _softmax(operator: str) -> Callable[..., Value]:
    return lambda call, x, axis, *_: call.op(operator, x, axis=axis)


def _concatenate(call: Call, values: Sequence[Value], axis: int = 0) -> Value:
    """Values one after another; zeros before and after a single one are padding, whatever the batch."""
    moving = [place for place, value in enumerate(values) if isinstance(value, str)]
    rest = [value for value in values if not isinstance(value, str)]
    if len(moving) != 1 or any(value.any() for value in rest):
        return call.op("Concat", *values, axis=axis)
    pads = [0] * (2 * len(call.shape))
    for place, value in enumerate(values):
        if not isinstance(value, str):
            pads[axis % len(call.shape) + (place > moving[0]) * len(call.shape)] += value.shape[axis]
    return call.op("Pad", values[moving[0]], call.integers(pads))


def _split(call: Call, x: str, sizes: int | Sequence[int], axis: int = 0) -> tuple[Value, ...]:
    shape = call.inputs[0]
    whole = shape[axis]
    if isinstance(whole, str):
        raise BatchDependenceError("cannot export a split of the batch: a verdict may depend on one image only")
    if isinstance(sizes, int):
        sizes = [min(sizes, whole - start) for start in range(0, whole, sizes)]
    place = axis % len(shape)
    parts = call.build.node("Split", [x, call.integers(sizes)], len(sizes), {"axis": place})
    return tuple(
        call.shaped(part, (*shape[:place], size, *shape[place + 1 :])) for part, size in zip(parts, sizes, strict=True)
    )


def _slice(call: Call, x: str, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Value:
    if call.inputs[0] == call.shape and step == 1:
        return x
    bounds = [[start or 0], [2**31 - 1 if end is None else end], [axis], [step]]
    return call.build.op("Slice", x, *[call.integers(bound) for bound in bounds])


def _slice_backward(call: Call, x: str, _: object, axis: int, start: int, end: int, step: int) -> Value:
    if call.inputs[0] == call.shape:
        return x
    size, taken = call.shape[axis], call.inputs[0][axis]
    if step != 1 or isinstance(size, str) or isinstance(taken, str):
        raise RecipeError(f"cannot export the gradient of a slice {start}:{end}:{step} of {size}")
    before = [0] * len(call.shape)
    before[axis] = start % size
    after = [0] * len(call.shape)
    after[axis] = size - before[axis] - taken
    return call.build.op("Pad", x, call.integers([*before, *after]))


def _permute(call: Call, x: str, axes: Sequence[int]) -> Value:
    return call.op("Transpose", x, perm=[axis % len(axes) for axis in axes])


def _elu(call: Call, x: str, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    if input_scale != 1:
        raise RecipeError(f"cannot export an ELU with input_scale {input_scale}")
    if scale != 1:
        return call.op("Selu", x, alpha=alpha, gamma=scale)
    return call.op("Elu", x, alpha=alpha)


def _softplus(call: Call, x: str, beta: float = 1.0, _: float = 20.0) -> Value:
    """Softplus; beyond its threshold, where torch returns x itself, the two differ by less than a rounding.

    That is so from the default threshold on: log(1 + exp(-20)) is 2e-9.
    """
    if beta == 1:
        return call.op("Softplus", x)
    return call.op("Div", call.op("Softplus", call.op("Mul", x, beta)), beta)


def _gelu(call: Call, x: str, *, approximate: str = "none") -> Value:
    return call.op("Gelu", x, approximate=approximate)


OPERATORS: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys((aten.add.Tensor, aten.add.Scalar), _binary("Add")),
    **dict.fromkeys((aten.sub.Tensor, aten.sub.Scalar), _binary("Sub")),
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar), _binary("Mul")),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar), _binary("Div")),
    aten.rsub.Scalar: lambda call, x, y, alpha=1: _binary("Sub")(call, y, x, alpha=alpha),
    aten.maximum.default: _binary("Max"),
    aten.minimum.default: _binary("Min"),
    **dict.fromkeys((aten.zeros_like.default, aten.new_zeros.default), _zeros),
    aten.neg.default: _unary("Neg"),
    aten.sign.default: _unary("Sign"),
    aten.sgn.default: _unary("Sign"),
    aten.round.default: _unary("Round"),
    aten.floor.default: _unary("Floor"),
    aten.ceil.default: _unary("Ceil"),
    aten.sin.default: _unary("Sin"),
    aten.cos.default: _unary("Cos"),
    aten.abs.default: _unary("Abs"),
    aten.exp.default: _unary("Exp"),
    aten.log.default: _unary("Log"),
    aten.erf.default: _unary("Erf"),
    aten.sqrt.default: _unary("Sqrt"),
    aten.reciprocal.default: _unary("Reciprocal"),
    aten.rsqrt.default: _rsqrt,
    aten.relu.default: _unary("Relu"),
    aten.sigmoid.default: _unary("Sigmoid"),
    aten.tanh.default: _unary("Tanh"),
    aten.gelu.default: _gelu,
    aten.mish.default: _unary("Mish"),
    aten.softplus.default: _softplus,
    aten.leaky_relu.default: lambda call, x, slope=0.01: call.op("LeakyRelu", x, alpha=slope),
    aten._prelu_kernel.default: lambda call, x, slope: call.op("PRelu", x, slope[0]),
    aten.elu.default: _elu,
    aten.celu.default: lambda call, x, alpha=1.0: call.op("Celu", x, alpha=alpha),
    aten.hardtanh.default: lambda call, x, low=-1.0, high=1.0: _clip(call, x, low, high),
    aten.hardswish.default: _unary("HardSwish"),
    aten.hardsigmoid.default: _unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    aten.pow.Tensor_Scalar: _power,
    aten.clamp.default: _clip,
    aten.clamp_min.default: _clip,
    aten.sum.dim_IntList: reduction("ReduceSum"),
    aten.mean.dim: reduction("ReduceMean"),
    aten.native_group_norm.default: group_norm,
    aten.convolution.default: convolution,
    aten.addmm.default: linear_with_bias,
    aten.mm.default: lambda call, x, weight: linear(call, x, weight, None),
    aten.max_pool2d_with_indices.default: max_pool,
    aten.avg_pool2d.default: average_pool,
    aten._adaptive_avg_pool2d.default: adaptive_average_pool,
    aten._log_softmax.default: _softmax("LogSoftmax"),
    aten._softmax.default: _softmax("Softmax"),
    aten.cat.default: _concatenate,
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default), _split),
    aten.slice.Tensor: _slice,
    aten.slice_backward.default: _slice_backward,
    aten.permute.default: _permute,
    aten.t.default: lambda call, x: _permute(call, x, [1, 0]),
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default, aten.reshape.default), _reshape),
    **dict.fromkeys((aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default), _reshape),
    aten.copy.default: _copied,
    **dict.fromkeys((aten.clone.default, aten.detach.default, aten.alias.default), _same),
}
"""By torch operator: what adds it to a graph and returns its value."""
