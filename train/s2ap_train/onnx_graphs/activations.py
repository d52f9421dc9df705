"""ONNX activations as torch functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from s2ap_train.onnx_graphs.rearranging import Attributes, Builder, Function

__all__ = ["ACTIVATIONS"]


def _celu(attributes: Attributes) -> Function:
    alpha = attributes.get("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


def _elu(attributes: Attributes) -> Function:
    alpha = attributes.get("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


def _gelu(attributes: Attributes) -> Function:
    approximate = attributes.get("approximate", b"none").decode()
    return lambda x: functional.gelu(x, approximate=approximate)


def _hard_sigmoid(attributes: Attributes) -> Function:
    slope, shift = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    return lambda x: torch.clamp(slope * x + shift, 0, 1)


def _leaky_relu(attributes: Attributes) -> Function:
    slope = attributes.get("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, slope)


def _parametric_relu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def _selu(attributes: Attributes) -> Function:
    alpha, gamma = attributes.get("alpha", 1.6732632423543772), attributes.get("gamma", 1.0507009873554805)
    return lambda x: gamma * functional.elu(x, alpha)


def _shrink(attributes: Attributes) -> Function:
    limit, bias = attributes.get("lambd", 0.5), attributes.get("bias", 0.0)
    return lambda x: torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def _thresholded_relu(attributes: Attributes) -> Function:
    limit = attributes.get("alpha", 1.0)
    return lambda x: torch.where(x > limit, x, torch.zeros_like(x))


ACTIVATIONS: dict[str, Builder] = {
    "Celu": _celu,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _: functional.hardswish,
    "LeakyRelu": _leaky_relu,
    "Mish": lambda _: functional.mish,
    "PRelu": lambda _: _parametric_relu,
    "Relu": lambda _: torch.relu,
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": lambda _: torch.sigmoid,
    "Softplus": lambda _: functional.softplus,
    "Softsign": lambda _: functional.softsign,
    "Tanh": lambda _: torch.tanh,
    "ThresholdedRelu": _thresholded_relu,
}
"""By operator name: what makes the torch function from the node's attributes."""
