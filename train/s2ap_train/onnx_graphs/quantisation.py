"""Q/DQ nodes as fake quantisation: integers of 8 bits are rounded floating numbers, through which gradients pass.

Rounding is constant in pieces; its gradient is taken to be 1 (straight-through, Bengio et al. 2013, arXiv 1308.3432),
and 0 beyond the range of the integers, where values are cut off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s2ap_train.onnx_graphs.rearranging import Attributes, Builder, Function

__all__ = ["QUANTISATION", "STRAIGHT_THROUGH_QUANTISATION"]


def _quantize(*, cut_off: bool) -> Builder:
    """QuantizeLinear; `cut_off` says whether nothing passes beyond the range."""

    def build(attributes: Attributes) -> Function:
        axis = attributes.get("axis", 1)

        def apply(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
            kind = torch.uint8 if zero_point is None else zero_point.dtype
            limits = torch.iinfo(kind)
            steps = x / _along(scale, axis, x)
            zero = torch.zeros((), dtype=x.dtype) if zero_point is None else zero_point.to(x)
            zero = _along(zero.to(x.device), axis, x)
            inside = torch.minimum(torch.maximum(steps, limits.min - zero), limits.max - zero)
            passed = inside if cut_off else steps
            return passed + (inside.round() - passed).detach() + zero

        return apply

    return build


def _dequantize(attributes: Attributes) -> Function:
    axis = attributes.get("axis", 1)

    def apply(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        values = x.to(scale)
        if zero_point is not None:
            values = values - _along(zero_point.to(scale), axis, x)
        return values * _along(scale, axis, x)

    return apply


def _along(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """Numbers of a whole tensor, or one for each place along an axis, so that they can be multiplied with it."""
    if values.numel() == 1:
        return values.reshape(())
    sizes = [1] * like.dim()
    sizes[axis] = len(values)
    return values.reshape(sizes)


QUANTISATION: dict[str, Builder] = {"QuantizeLinear": _quantize(cut_off=True), "DequantizeLinear": _dequantize}
"""By operator name: what makes the torch function from the node's attributes."""

STRAIGHT_THROUGH_QUANTISATION: dict[str, Builder] = {"QuantizeLinear": _quantize(cut_off=False)}
"""The same where gradients pass on beyond the range as well."""
