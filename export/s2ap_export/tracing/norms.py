"""Group normalisation and factors per channel as ONNX nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from s2ap_export.tracing.call import Call, Value
from s2ap_export.tracing.layers import VECTOR, reduced

__all__ = ["group_norm", "per_channel"]

BATCH_NORM_EPS = 2.0**-16  # added to a variance of 1 - 2 ** -16: exactly one, and no less than engines accept


def group_norm(
    call: Call,
    x: str,
    weight: Tensor | None,
    bias: Tensor | None,
    _: object,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> tuple[Value, Value | None, Value | None]:
    """Group normalisation of images: the result, and for the gradient means and reciprocal deviations [N, G].

    Where no gradient needs these, engines normalise rows in one node. Otherwise its parts are those of the gradient.
    Either way the variance is a mean of squared differences from the mean; nothing cancels.
    """
    before, length = call.inputs[0], channels // groups * pixels
    rows = call.build.reshape(x, (before[0], groups, length))
    mean = reciprocal = None
    if call.build.rewrites.fused_norms and call.taken == {0} and length % VECTOR == 0:
        ones, zeros = torch.ones(groups), torch.zeros(groups)
        normal = call.op("InstanceNormalization", rows, ones, zeros, epsilon=eps)
    else:
        one_per_row = (before[0], groups, 1)
        mean = reduced(call, "ReduceMean", rows, (before[0], groups, length), [-1], one_per_row, keepdim=True)
        centred = call.op("Sub", rows, mean)
        squares = call.op("Mul", centred, centred)
        variance = reduced(call, "ReduceMean", squares, (before[0], groups, length), [-1], one_per_row, keepdim=True)
        reciprocal = call.op("Reciprocal", call.op("Sqrt", call.op("Add", variance, eps)))
        normal = call.op("Mul", centred, reciprocal)
        mean, reciprocal = (
            call.build.reshape(call.shaped(value, one_per_row), (before[0], groups)) for value in (mean, reciprocal)
        )
    result = call.build.reshape(call.shaped(normal, (before[0], groups, length)), before)
    if weight is not None or bias is not None:
        scale = torch.ones(channels) if weight is None else weight
        result = per_channel(call, result, scale, torch.zeros(channels) if bias is None else bias)
    return result, mean, reciprocal


def per_channel(call: Call, x: str, scale: Tensor, shift: Tensor | None = None) -> str:
    """Images times [C] plus [C]: a batch normalisation, in which engines pass over the images once.

    They also take factors in longer runs than in a product, which is broadcast row by row.
    """
    channels = scale.numel()
    if not call.build.rewrites.merged_constants:
        result = call.op("Mul", x, scale.reshape(1, channels, 1, 1))
        return result if shift is None else call.op("Add", result, shift.reshape(1, channels, 1, 1))
    added = torch.zeros(channels) if shift is None else shift.reshape(-1)
    variance = torch.full((channels,), 1 - BATCH_NORM_EPS)
    result = call.op(
        "BatchNormalization", x, scale.reshape(-1), added, torch.zeros(channels), variance, epsilon=BATCH_NORM_EPS
    )
    if shift is None:
        call.build.products[result] = (x, scale)
    return result


def channel_constant(value: object, rank: int) -> Tensor | None:
    """The constant [C] that a tensor [1, C, 1, 1] is, C above one, where images have four axes."""
    if rank == 4 and isinstance(value, Tensor) and value.dim() == 4 and value.numel() == value.shape[1] > 1:
        return value.reshape(-1)
    return None
