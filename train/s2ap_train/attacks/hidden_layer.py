"""The output of a layer in the middle of a network, which attacks on features move."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import Tensor, nn

from s2ap_defend.errors import RecipeError

Features = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [N, C, H, W] -> (features of a layer [N, ...], logits [N, K]), with gradients."""


def hidden_layer(network: object, name: str | None = None) -> Features:
    """A function from images to a layer's output h and the logits, on one graph.

    The logits are a function of h, so gradients go from either to the images and from the logits to h.

    Args:
        network: A torch module: images [N, C, H, W] -> logits [N, K].
        name: The layer as in `named_modules`, as in "blocks.2"; None takes `middle_layer`.

    Raises:
        RecipeError: If the network is no torch module or has no such layer; the function itself raises it if the layer
            does not return one tensor, once in each pass.
    """
    if not isinstance(network, nn.Module):
        raise RecipeError(
            f"the classifier is a {type(network).__name__}, expected a torch module: attacks on features need its "
            "layers; pass the network itself"
        )
    name = middle_layer(network) if name is None else name
    layer = _layer(network, name)

    def features(images: Tensor) -> tuple[Tensor, Tensor]:
        outputs: list[object] = []
        hook = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            logits = network(images)
        finally:
            hook.remove()
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            found = f"{len(outputs)} outputs" if len(outputs) != 1 else f"a {type(outputs[0]).__name__}"
            raise RecipeError(
                f"layer {name!r} gave {found} in one pass, expected one tensor; name a layer that the network calls "
                "exactly once"
            )
        return outputs[0], logits

    return features


def middle_layer(network: nn.Module) -> str:
    """Name of the middle layer of a network's main chain of layers.

    The chain is the outermost `Sequential` or `ModuleList` of at least two layers, the longest if there are several:
    "blocks.2" of a `SmallCNN` of six blocks, "stages.1" of a `ResNet18`.

    Raises:
        RecipeError: If there is no such chain.
    """
    chains = [
        (name.count(".") + 1 if name else 0, -len(module), name, list(module._modules))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) > 1
    ]
    if not chains:
        raise RecipeError(
            f"{type(network).__name__} has no chain of layers to take the middle of; name a layer: "
            f"{_listed(_names(network))}"
        )
    _, _, chain, layers = min(chains)
    middle = layers[(len(layers) - 1) // 2]
    return f"{chain}.{middle}" if chain else middle


def _layer(network: nn.Module, name: str) -> nn.Module:
    layers = dict(network.named_modules())
    if not name or name not in layers:
        names = _names(network)
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        raise RecipeError(
            f"layer {name!r} is not in {type(network).__name__}; choose one of its layers: {_listed(nearest or names)}"
        )
    layer: nn.Module = layers[name]
    return layer


def _names(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_modules() if name]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "it has none"
