"""Layers as ONNX nodes: convolutions, linear layers, pools, sums and means.

Each gives an image the same bits alone and in a batch. Matrix products and some sums take other kernels, or another
order of addition, at other batch sizes; what stands here in their place does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_export.graph.builder import Attribute, Shape
from s2ap_export.graph.rewrites import Rewrites
from s2ap_export.tracing.call import BatchDependenceError, Call, Value

__all__ = [
    "adaptive_average_pool",
    "average_pool",
    "convolution",
    "linear",
    "linear_with_bias",
    "max_pool",
    "reduced",
    "reduction",
]

VECTOR = 16  # numbers in the widest vector register


def reduction(operator: str) -> Callable[..., Value]:
    """Sums and means, `reduced`."""

    def lower(call: Call, x: str, axes: Sequence[int] | None, keepdim: bool = False) -> Value:
        return reduced(call, operator, x, call.inputs[0], axes or range(len(call.inputs[0])), call.shape, keepdim)

    return lower


def reduced(
    call: Call, operator: str, x: str, before: Shape, axes: Sequence[int], after: Shape, keepdim: bool = False
) -> str:
    """A sum or mean: `operator` is ReduceSum or ReduceMean, `before` and `after` are the shapes.

    Engines add up numbers in another order where a row does not begin or end with a full vector register, so the result
    would depend on the image's place in the batch. Where that can happen, rows are padded with zeros, and sums across
    rows are convolutions.
    """
    rank = len(before)
    chosen = sorted(axis % rank for axis in axes)
    if isinstance(before[chosen[0]], str):
        raise BatchDependenceError("cannot export a sum over the batch: a verdict may depend on one image only")
    sizes = [0 if isinstance(size, str) else size for size in before]
    count, inner = math.prod(sizes[axis] for axis in chosen), math.prod(sizes[chosen[-1] + 1 :])
    factor = 1 / count if operator == "ReduceMean" and count else 1.0
    trailing = chosen == list(range(chosen[0], rank))
    if chosen == [rank - 2, rank - 1] and rank == 4 and operator == "ReduceMean":
        pooled = call.shaped(call.op("GlobalAveragePool", x), (*before[:2], 1, 1))
        return call.build.reshape(pooled, after)
    if (count if trailing else inner) % VECTOR == 0:
        return call.shaped(call.op(operator, x, call.integers(chosen), keepdims=int(keepdim)), after)
    if trailing:
        rows = call.build.reshape(x, (*before[: chosen[0]], count))
        padded = call.op("Pad", rows, call.integers([0] * (2 * chosen[0] + 1) + [-count % VECTOR]))
        total = call.op("ReduceSum", padded, call.integers(chosen[:1]), keepdims=0)
        total = call.op("Mul", total, factor) if factor != 1 else total
        total = call.shaped(total, before[: chosen[0]])
    elif chosen == [1]:
        columns = call.build.reshape(x, (before[0], count, inner, 1))
        total = call.op("Conv", columns, torch.full((1, count, 1, 1), factor), kernel_shape=[1, 1])
        total = call.shaped(total, (before[0], 1, inner, 1))
    else:
        raise RecipeError(f"cannot export a reduction over the axes {chosen} of {before}; reduce the last ones")
    return call.build.reshape(total, after)


def convolution(
    call: Call,
    x: str,
    weight: Value,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    """A convolution; a transposed one of stride 1 is a plain one with mirrored weights, and the other way round."""
    if not isinstance(weight, Tensor):
        raise RecipeError("cannot export a convolution whose weights depend on the image")
    kernel = list(weight.shape[2:])
    if (
        set(stride) == {1}
        and not any(output_padding)
        and _better_mirrored(call.build.rewrites, weight, transposed, groups)
    ):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if all(r >= p for r, p in zip(reach, padding, strict=True)):
            inputs, outputs = weight.shape[0] // groups, weight.shape[1]
            weight = weight.reshape(groups, inputs, outputs, *kernel).transpose(1, 2)
            weight = weight.reshape(groups * outputs, inputs, *kernel).flip(list(range(2, 2 + len(kernel))))
            padding, transposed = [r - p for r, p in zip(reach, padding, strict=True)], not transposed
    attributes: dict[str, Attribute] = {
        "kernel_shape": kernel,
        "strides": list(stride),
        "pads": [*padding, *padding],
        "dilations": list(dilation),
        "group": groups,
    }
    if transposed:
        attributes["output_padding"] = list(output_padding)
    constants = [weight] if bias is None else [weight, bias]
    return call.op("ConvTranspose" if transposed else "Conv", x, *constants, **attributes)


def _better_mirrored(rewrites: Rewrites, weight: Tensor, transposed: bool, groups: int) -> bool:
    """Whether a convolution of stride 1 is faster in its other form.

    Engines compute plain ones in blocks of as many channels as a register holds, mostly empty where there are few
    outputs; transposed ones are products of matrices, whose results are then added up.
    """
    inputs, outputs = (weight.shape[0], weight.shape[1]) if transposed else (weight.shape[1], weight.shape[0])
    few = rewrites.few_channels and groups == 1 and 4 * outputs <= VECTOR <= inputs and weight[0, 0].numel() > 1
    return rewrites.mirrored_convolutions and not few if transposed else few


def linear(call: Call, x: str, weight: Value, bias: Tensor | None, position: int = 0) -> Value:
    """Rows [N, F] times a constant [F, K]: a convolution as large as the image that was flattened into the rows."""
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise RecipeError("cannot export a product of two values that depend on the image; attention is not supported")
    features, outputs = weight.shape
    source, shape = call.build.source_of(x)
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    if len(sizes) != 3 or math.prod(sizes) != features:
        sizes, shape = [features, 1, 1], (*call.inputs[position][:1], features, 1, 1)
        source = call.build.reshape(x, shape)
    constants = [weight.t().reshape(outputs, *sizes)] + ([] if bias is None else [bias.expand(outputs)])
    product = call.op("Conv", source, *constants, kernel_shape=sizes[1:])
    return call.build.reshape(call.shaped(product, (*shape[:1], outputs, 1, 1)), call.shape)


def linear_with_bias(call: Call, bias: Value, x: str, weight: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    """A linear layer; torch puts the bias first."""
    if not isinstance(bias, Tensor) or beta != 1 or alpha != 1:
        raise RecipeError("cannot export addmm with a bias that depends on the image, or with factors")
    return linear(call, x, weight, bias, position=1)


def max_pool(
    call: Call,
    x: str,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Value, None]:
    """The maximum over windows, and None in place of its indices, which only gradients need."""
    pads, strides, rounded = _pair(padding) * 2, _pair(stride or kernel), {"ceil_mode": 1} if ceil_mode else {}
    window = _pair(kernel)
    dilations = _pair(dilation)
    pooled = call.op("MaxPool", x, kernel_shape=window, strides=strides, pads=pads, dilations=dilations, **rounded)
    return pooled, None


def average_pool(
    call: Call,
    x: str,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    """The mean over windows."""
    if ceil_mode:
        raise RecipeError("cannot export an average pool with ceil_mode")
    pads, strides, window = _pair(padding) * 2, _pair(stride or kernel), _pair(kernel)
    counted = int(count_include_pad or divisor_override is not None)
    mean = call.op("AveragePool", x, kernel_shape=window, strides=strides, pads=pads, count_include_pad=counted)
    return mean if divisor_override is None else call.op("Mul", mean, math.prod(window) / divisor_override)


def adaptive_average_pool(call: Call, x: str, size: Sequence[int]) -> Value:
    """The mean over windows that divide the image."""
    before = [int(s) for s in call.inputs[0][-2:]]
    if any(b % s for b, s in zip(before, size, strict=True)):
        raise RecipeError(f"cannot export an adaptive pool from {before} to {list(size)}; the sizes must divide")
    kernel = [b // s for b, s in zip(before, size, strict=True)]
    return call.op("AveragePool", x, kernel_shape=kernel, strides=kernel)


def _pair(sizes: Sequence[int]) -> list[int]:
    return [int(size) for size in (sizes if len(sizes) == 2 else [sizes[0]] * 2)]
