"""ONNX convolutions and pools as torch functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from s2ap_train.onnx_graphs.rearranging import Attributes, Builder, Function

__all__ = ["WINDOWS"]

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
"""By the number of axes that a window has."""


def _conv(attributes: Attributes) -> Function:
    stride, dilation = attributes.get("strides"), attributes.get("dilations")
    groups = attributes.get("group", 1)

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.dim() - 2
        padded, padding = _padding(x, _pads(attributes, x, weight.shape[2:]), rank)
        return _CONVOLUTIONS[rank](padded, weight, bias, stride or 1, padding, dilation or 1, groups)

    return apply


def _conv_transpose(attributes: Attributes) -> Function:
    _no_auto_pad(attributes)
    pads = attributes.get("pads")
    if (pads and pads[: len(pads) // 2] != pads[len(pads) // 2 :]) or "output_shape" in attributes:
        raise ValueError(f"ConvTranspose with pads {pads} or output_shape")
    padding = pads[: len(pads) // 2] if pads else 0
    stride, dilation = attributes.get("strides", 1), attributes.get("dilations", 1)
    output_padding, groups = attributes.get("output_padding", 0), attributes.get("group", 1)

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        function = _TRANSPOSED[weight.dim() - 2]
        return function(x, weight, bias, stride, padding, output_padding, groups, dilation)

    return apply


def _max_pool(attributes: Attributes) -> Function:
    kernel, stride = attributes["kernel_shape"], attributes.get("strides", 1)
    dilation, ceil = attributes.get("dilations", 1), bool(attributes.get("ceil_mode", 0))

    def apply(x: Tensor) -> Tensor:
        padded, padding = _padding(x, _pads(attributes, x, kernel), len(kernel), value=-torch.inf)
        return _MAX_POOLS[len(kernel)](padded, kernel, stride, padding, dilation, ceil)

    return apply


def _average_pool(attributes: Attributes) -> Function:
    kernel, stride = attributes["kernel_shape"], attributes.get("strides", 1)
    include, ceil = bool(attributes.get("count_include_pad", 0)), bool(attributes.get("ceil_mode", 0))
    pool, rank = _AVERAGE_POOLS[len(kernel)], len(kernel)
    if any(size != 1 for size in attributes.get("dilations", ())):
        raise ValueError("AveragePool with dilations")

    def apply(x: Tensor) -> Tensor:
        pads = _pads(attributes, x, kernel)
        padded, padding = _padding(x, pads, rank)
        mean = pool(padded, kernel, stride, padding, ceil, include)
        if include or padded is x:
            return mean
        return mean / pool(_padding(torch.ones_like(x[:1, :1]), pads, rank)[0], kernel, stride, 0, ceil, include)

    return apply


def _pads(attributes: Attributes, x: Tensor, kernel: Sequence[int]) -> Sequence[int] | None:
    """Places before and after each axis of images: those that are said, or so many that as many windows as steps fit.

    Args:
        attributes: Of a node that moves a window.
        x: Images [N, C, ...].
        kernel: Size of the window.
    """
    kind = attributes.get("auto_pad", b"NOTSET")
    if kind not in {b"SAME_UPPER", b"SAME_LOWER"}:
        return attributes.get("pads")
    ones = [1] * len(kernel)
    axes = zip(x.shape[2:], kernel, attributes.get("strides") or ones, attributes.get("dilations") or ones, strict=True)
    missing = [
        max((-(-side // step) - 1) * step + dilation * (size - 1) + 1 - side, 0) for side, size, step, dilation in axes
    ]
    less, more = [one // 2 for one in missing], [one - one // 2 for one in missing]
    return [*less, *more] if kind == b"SAME_UPPER" else [*more, *less]


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


WINDOWS: dict[str, Builder] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": lambda _: lambda x: x.mean(dim=tuple(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda _: lambda x: x.amax(dim=tuple(range(2, x.dim())), keepdim=True),
    "MaxPool": _max_pool,
}
"""By operator name: what makes the torch function from the node's attributes."""
