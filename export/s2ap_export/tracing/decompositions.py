"""Torch operators rewritten in simpler ones while a network is traced, gradients included.

The forward and the backward form of an operator share their parts, which the graph then stores once. (The forward
form of group normalisation is in `norms`, in the same parts.) Gradients are taken with respect to the image alone;
those of weights are None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

from s2ap_defend.errors import RecipeError
from s2ap_export.tracing.call import BatchDependenceError

__all__ = ["decompositions"]

aten = torch.ops.aten


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The table for `make_fx`."""
    table: dict[Any, Callable[..., Any]] = get_decompositions(  # gradients of other smooth activations and of resizing
        [aten.gelu_backward, aten.sigmoid_backward, aten.tanh_backward, aten.softplus_backward, aten.elu_backward]
    )
    return table | {
        aten.convolution_backward.default: _convolution_backward,
        aten.native_group_norm_backward.default: _group_norm_backward,
        aten.native_batch_norm.default: _batch_norm,
        aten.native_layer_norm.default: _layer_norm,
        aten.rrelu_with_noise.default: _rrelu,
        aten.silu.default: _silu,
        aten.silu_backward.default: _silu_backward,
    }


def _convolution_backward(
    grad: Tensor,
    images: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,  # noqa: ARG001
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],  # noqa: ARG001
    groups: int,
    output_mask: Sequence[bool],  # noqa: ARG001
) -> tuple[Tensor, None, None]:
    """The gradient of a convolution is a transposed one, and the other way round.

    Several input sizes give the same output size when the stride exceeds one; the output padding tells them apart.
    """
    rest = [0] * len(stride)
    if not transposed:
        for i, kernel in enumerate(weight.shape[2:]):
            smallest = (int(grad.shape[i + 2]) - 1) * stride[i] - 2 * padding[i] + dilation[i] * (int(kernel) - 1) + 1
            rest[i] = int(images.shape[i + 2]) - smallest
    result = aten.convolution(grad, weight, None, stride, padding, dilation, not transposed, rest, groups)
    return result, None, None


def _rows(images: Tensor, groups: int) -> Tensor:
    """Groups of channels as rows [N, G, C / G * H * W]."""
    return images.reshape(images.shape[0], groups, images.shape[1:].numel() // groups)


def _normalised(rows: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = rows.mean(dim=-1, keepdim=True)
    centred = rows - mean
    reciprocal_std = ((centred * centred).mean(dim=-1, keepdim=True) + eps).rsqrt()
    return centred * reciprocal_std, mean, reciprocal_std


def _group_norm_backward(
    grad: Tensor,
    images: Tensor,
    mean: Tensor,
    reciprocal_std: Tensor,
    weight: Tensor | None,
    n: int,  # noqa: ARG001
    channels: int,
    pixels: int,  # noqa: ARG001
    groups: int,
    output_mask: Sequence[bool],  # noqa: ARG001
) -> tuple[Tensor, None, None]:
    if weight is not None:
        grad = grad * weight.reshape([1, channels] + [1] * (images.dim() - 2))
    reciprocal_std = reciprocal_std.unsqueeze(-1)
    normal = (_rows(images, groups) - mean.unsqueeze(-1)) * reciprocal_std
    rows = _rows(grad, groups)
    along = (rows * normal).mean(dim=-1, keepdim=True)
    result = (rows - rows.mean(dim=-1, keepdim=True) - normal * along) * reciprocal_std
    return result.reshape(images.shape), None, None


def _layer_norm(
    values: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    leading = values.shape[: values.dim() - len(shape)]
    rows, mean, reciprocal_std = _normalised(values.reshape(*leading, torch.Size(shape).numel()), eps)
    result = rows.reshape(values.shape)
    result = result if weight is None else result * weight
    return result if bias is None else result + bias, mean, reciprocal_std


def _batch_norm(
    images: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,  # noqa: ARG001
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if images.shape[0] == 1:  # as torch puts instance normalisation: the channels of all images are those of one
        raise RecipeError(
            "cannot export an instance normalisation (InstanceNorm2d); use GroupNorm with as many groups as channels, "
            "or BatchNorm2d where it has running statistics: they are the same functions of an image"
        )
    if training:
        raise BatchDependenceError(
            "cannot export a batch normalisation without running statistics (BatchNorm2d(track_running_stats=False), "
            "or one that stays in training mode): it reads the other images of the batch, a verdict may depend on one "
            "image only; train it with track_running_stats=True and let eval() reach it, or use GroupNorm"
        )
    per_channel = [1, -1] + [1] * (images.dim() - 2)
    scale = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    nothing = mean.new_empty(0)
    return images * scale.reshape(per_channel) + shift.reshape(per_channel), nothing, nothing


def _rrelu(
    x: Tensor,
    noise: Tensor,  # noqa: ARG001
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,  # noqa: ARG001
    generator: object = None,  # noqa: ARG001
) -> Tensor:
    slope = (lower + upper) / 2  # of evaluation mode
    return aten.leaky_relu(x, slope)  # type: ignore[no-any-return]


def _silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    sigmoid = x.sigmoid()
    return grad * (x * sigmoid + sigmoid * (1 - x * sigmoid))  # s + y (1 - s) with y = x s
