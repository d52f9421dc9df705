"""The weights of a network that pruning can remove."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of all layers that multiply, first and last included, by parameter name; shared ones once.

    These are convolutions, transposed ones too, linear layers, and the projections of `nn.MultiheadAttention`. A weight
    that is computed from others, as by weight normalisation, is not among them, nor is a bare parameter of a module of
    the user's.
    """
    weights = {}
    for name, module in model.named_modules():
        own = {_ConvNd: ("weight",), nn.Linear: ("weight",), nn.MultiheadAttention: _ATTENTION}
        for attribute in next((names for kind, names in own.items() if isinstance(module, kind)), ()):
            weight = getattr(module, attribute)
            if isinstance(weight, nn.Parameter):
                weights[f"{name}.{attribute}" if name else attribute] = weight
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: weight for name, weight in weights.items() if names.get(id(weight)) == name}  # shared ones once
