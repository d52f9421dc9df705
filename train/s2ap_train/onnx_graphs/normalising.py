"""ONNX operators that normalise, as differentiable torch functions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from s2ap_train.onnx_graphs.rearranging import Attributes, Builder, Function

__all__ = ["NORMALISATIONS"]


def _instance_norm(attributes: Attributes) -> Function:
    eps = attributes.get("epsilon", 1e-5)
    return lambda x, scale, bias: functional.instance_norm(x, weight=scale, bias=bias, eps=eps)


def _batch_norm(attributes: Attributes) -> Function:
    eps = attributes.get("epsilon", 1e-5)
    return lambda x, scale, bias, mean, var: functional.batch_norm(x, mean, var, scale, bias, eps=eps)


def _group_norm(attributes: Attributes) -> Function:
    eps, groups = attributes.get("epsilon", 1e-5), attributes["num_groups"]

    def apply(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        scale, bias = (values.repeat_interleave(x.shape[1] // len(values)) for values in (scale, bias))
        return functional.group_norm(x, groups, scale, bias, eps)  # operator set 20 gives one factor a group

    return apply


def _layer_norm(attributes: Attributes) -> Function:
    eps, axis = attributes.get("epsilon", 1e-5), attributes.get("axis", -1)

    def apply(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        scaled = functional.layer_norm(x, x.shape[axis:], eps=eps) * scale
        return scaled if bias is None else scaled + bias

    return apply


def _local_response(attributes: Attributes) -> Function:
    alpha, beta = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75)
    size, bias = attributes["size"], attributes.get("bias", 1.0)
    return lambda x: functional.local_response_norm(x, size, alpha, beta, bias)  # ONNX Runtime takes odd sizes alone


def _lp_norm(attributes: Attributes) -> Function:
    axis, power = attributes.get("axis", -1), attributes.get("p", 2)
    return lambda x: x / x.norm(p=power, dim=axis, keepdim=True)


def _mean_variance_norm(attributes: Attributes) -> Function:
    axes = attributes.get("axes", [0, 2, 3])

    def apply(x: Tensor) -> Tensor:
        centred: Tensor = x - x.mean(dim=axes, keepdim=True)
        return centred / (centred.square().mean(dim=axes, keepdim=True).sqrt() + 1e-9)

    return apply


NORMALISATIONS: dict[str, Builder] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance_norm,
}
"""By operator name: what makes the torch function from the node's attributes."""
