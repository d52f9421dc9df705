"""Folding: batch normalisation moved into the layer before it, for export and for attacks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from s2ap_train.models.classifier import Classifier
from s2ap_train.models.modes import evaluation_mode

Pairs = tuple[tuple[str, str], ...]

_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_known: dict[object, Pairs] = {}  # by network structure; a few entries, each some names


def evaluation_view(model: nn.Module) -> nn.Module:
    """A network with the present evaluation logits of the model, faster to attack where we know how; else the model.

    Rounding differs from the model's own. It must be in evaluation mode, or be put there.
    """
    pairs = normalised_layers(model)
    return _folded(model, pairs) if pairs else model


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """An evaluation copy whose batch normalisation went, where it can, into the convolution or linear layer before it.

    It can where that layer's output is read by nothing else; normalisation elsewhere (before the convolution, as in
    WideResNet) stays as it is, and so does all of it in a network whose forward method torch.fx cannot follow. The copy
    computes the same logits as `model.eval()` up to float32 rounding. Zero weights stay exactly zero, and the copy
    shares no tensor with the model.
    """
    return _folded(model, normalised_layers(model))


def _folded(model: nn.Module, pairs: Pairs) -> nn.Module:
    replaced: dict[int, Any] = {}  # by identity, in place of copies
    for layer_name, norm_name in pairs:
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        replaced |= {id(layer): _fold(layer, norm), id(norm): nn.Identity()}
    return copy.deepcopy(model, replaced).eval().requires_grad_(False)


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> nn.Module:  # noqa: ANN401
    layer = _without_parametrisation(layer)
    scale = (norm.running_var.double() + norm.eps).rsqrt()  # [O]
    scale = scale if norm.weight is None else scale * norm.weight.double()
    mean = norm.running_mean.double() - (0 if layer.bias is None else layer.bias.double())
    shift = (0 if norm.bias is None else norm.bias.double()) - scale * mean
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    folded: Any = copy.deepcopy(layer, {id(layer.weight): nn.Parameter(weight.to(layer.weight.dtype))})
    folded.bias = nn.Parameter(shift.to(layer.weight.dtype))
    return folded  # type: ignore[no-any-return]


def _without_parametrisation(layer: Any) -> Any:  # noqa: ANN401
    """The layer, or a copy that holds the present values of the tensors that it computes.

    Not by `remove_parametrizations`, which changes the class that a copy shares with its original.
    """
    if not parametrize.is_parametrized(layer):
        return layer
    values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}
    plain = copy.deepcopy(layer)
    del plain._modules["parametrizations"]
    plain.__class__ = parametrize.type_before_parametrizations(layer)
    for name, value in values.items():
        plain.register_parameter(name, nn.Parameter(value))
    return plain


def normalised_layers(model: nn.Module) -> Pairs:
    """Names of layers and of the normalisations that alone read them.

    Following a forward method takes as long as several forward passes, and attacks ask at every training step. What a
    `Classifier` does follows from its class, its arguments and its layers, so copies are not followed again.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return ()
    if not isinstance(model, Classifier):
        return _found_pairs(model)
    layers = tuple((name, type(module)) for name, module in model.named_modules())
    key = (type(model), repr(model.arguments()) if hasattr(model, "factory") else "", layers)
    if key not in _known:
        _known[key] = _found_pairs(model)
    return _known[key]


def _found_pairs(model: nn.Module) -> Pairs:
    try:
        with evaluation_mode(model):
            graph = fx.Tracer().trace(model)
    except Exception:  # a forward method may do anything; without folding it is only slower
        return ()
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = [node for node in graph.nodes if node.op == "call_module"]
    called = [id(modules[node.target]) for node in calls]
    pairs = []
    for node in calls:
        layer, readers = modules[node.target], list(node.users)
        if not isinstance(layer, _FOLDABLE) or len(readers) != 1 or readers[0].op != "call_module":
            continue
        norm = modules[readers[0].target]
        once = called.count(id(layer)) == called.count(id(norm)) == 1
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and once:
            pairs.append((str(node.target), str(readers[0].target)))
    return tuple(pairs)
