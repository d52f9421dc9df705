"""The dependency graph of a network's channels, by the library torch-pruning, in this project's terms."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from s2ap_defend.errors import RecipeError

INSTEAD = "use an unstructured or 2:4 mask for this network"

Rows = tuple[int, ...]
"""For each row of a parameter the channel that it belongs to; -1 = a channel of another group."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together.

    Attributes:
        name: Of the first weight that produces them, in the order of `named_parameters`.
        size: Number of channels.
        gates: Parameters whose dimension 0 is multiplied by the gate [size], so that a closed channel is exactly 0 for
            whoever reads it: scale and shift of the normalisations, and weight and bias of a producer that something
            reads without normalisation in between.
        producers: Weights whose dimension 0 is these channels.
        consumers: Weights that read these channels, and in how many columns (dimension 1; a linear layer behind a
            flattened image has one column a pixel).
        rows: For parameters that hold other rows too (a normalisation after a concatenation): the channel of each row.
    """

    name: str
    size: int
    gates: tuple[str, ...]
    producers: tuple[str, ...]
    consumers: Mapping[str, int] = field(hash=False)
    rows: Mapping[str, Rows] = field(hash=False, default_factory=dict)


class ChannelGraph:
    """The dependency graph of a copy of a network, in evaluation mode; removals change the copy."""

    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.model: Any = copy.deepcopy(model).eval().requires_grad_(True)  # what autograd records is traced
        example = next(model.parameters()).new_full((2, *image_shape), 0.5)
        self._graph = torch_pruning.DependencyGraph()
        layers = {module: name for name, module in self.model.named_modules() if _is_layer(module)}
        ran: set[nn.Module] = set()
        hooks = [layer.register_forward_hook(lambda layer, *_: ran.add(layer)) for layer in layers]
        try:
            with torch.enable_grad():
                self._graph.build_dependency(self.model, example_inputs=example, verbose=False)
        except Exception as error:  # of the user's module, or of a library that knows fewer layers than torch
            raise RecipeError(
                f"the channels of this {type(model).__name__} cannot be followed: {type(error).__name__}: {error}; "
                f"{INSTEAD}"
            ) from error
        for hook in hooks:
            hook.remove()
        lost = [name for layer, name in layers.items() if layer in ran and layer not in self._graph.module2node]
        if lost:
            raise RecipeError(
                f"the channels of {', '.join(lost)} cannot be followed, no gradient comes back to them; "
                f"take detach and no_grad out of the forward method, or {INSTEAD}"
            )
        self._names = {module: name for name, module in self.model.named_modules()}
        self._order = {name: n for n, (name, _) in enumerate(self.model.named_parameters())}

    def groups(self) -> list[ChannelGroup]:
        """All groups but that of the logits, in the order of the parameters."""
        found = [self._group(items) for items in self._graph.get_all_groups()]
        return sorted((group for group in found if group is not None), key=lambda group: self._order[group.name])

    def remove(self, group: ChannelGroup, channels: list[int]) -> None:
        """Take channels of one group out."""
        if not channels:
            return
        items = self._items(self.model.get_submodule(group.name.rpartition(".")[0]), channels)
        coupled = sorted(set(items[0].idxs) - set(channels))
        if coupled:
            raise RecipeError(
                f"channels cannot be pruned here: channels of group {group.name} are coupled with one another "
                f"({channels[0]} with {coupled[0]}), by a split or a layer that is used twice; {INSTEAD}"
            )
        items.prune()

    def _items(self, root: nn.Module, channels: list[int]) -> Any:  # noqa: ANN401
        """Everything that changes with these output channels of a layer."""
        out = self._graph.get_pruner_of_module(root).prune_out_channels
        return self._graph.get_pruning_group(root, out, channels)

    def _group(self, found: Any) -> ChannelGroup | None:  # noqa: ANN401
        """A group of the library in names, numbered by its first producer; None if the logits are in it."""
        for item in found:
            self._refuse_unsuitable(item.dep.target.module)
        size = len(found[0].idxs)
        writers = [item.dep.target.module for item in found if self._writes(item.dep) and len(item.idxs) == size]
        roots = [module for module in writers if module.weight.shape[0] == size]
        root = min(roots, key=lambda module: self._order[self._parameter(module, "weight")])
        rows: dict[str, Rows] = {}
        producers, gates, consumers = [], [], {}
        for item in self._items(root, list(range(size))):
            module, node = item.dep.target.module, item.dep.target
            if module not in self._names:
                continue
            weight = self._parameter(module, "weight")
            if self._writes(item.dep):
                if not all(after is not node and _is_layer(after.module) for after in _forward(node, past_norms=True)):
                    return None
                producers.append(weight)
                gated = any(not _is_depthwise(after.module) for after in _forward(node, past_norms=False))
            elif _is_layer(module):
                consumers[weight] = len(item.idxs)
                continue
            elif isinstance(module, _NormBase):
                gated = True
            else:
                continue  # an activation with parameters, 0 at 0
            names = [weight, *([self._parameter(module, "bias")] if module.bias is not None else [])]
            gates += names if gated else []
            if not list(item.idxs) == list(item.root_idxs) == list(range(size)) or module.weight.shape[0] != size:
                channels = dict(zip(item.idxs, item.root_idxs, strict=True))
                rows |= dict.fromkeys(names, tuple(channels.get(i, -1) for i in range(module.weight.shape[0])))
        name = self._parameter(root, "weight")
        return ChannelGroup(name, size, tuple(gates), tuple(producers), consumers, rows)

    def _writes(self, dep: Any) -> bool:  # noqa: ANN401
        """Whether these are output channels of a layer with weights."""
        module = dep.target.module
        return _is_layer(module) and (_is_depthwise(module) or self._graph.is_out_channel_pruning_fn(dep.handler))

    def _parameter(self, module: nn.Module, name: str) -> str:
        return f"{self._names[module]}.{name}"

    def _refuse_unsuitable(self, module: nn.Module) -> None:
        if module not in self._names:
            return  # an operation without parameters, or a parameter of no layer
        name, kind = self._names[module], type(module).__name__
        if isinstance(module, _NormBase):
            problem = "" if module.affine else "has no scale and shift that could be gated; give it affine=True"
        elif isinstance(module, _ConvTransposeNd):
            problem = "is transposed"
        elif _is_layer(module):
            grouped = isinstance(module, _ConvNd) and module.groups > 1 and not _is_depthwise(module)
            own = f"{name}.weight" in self._order  # not of a parametrisation such as weight normalisation
            problem = "" if own else "has a weight that is computed from others"
            problem = "is grouped, so that its channels cannot be removed one by one" if grouped else problem
        else:
            alone = isinstance(module, nn.PReLU) or not any(True for _ in module.parameters())
            problem = "" if alone else "mixes channels in a way that cannot be gated"
        if problem:
            raise RecipeError(f"channels cannot be pruned here: {kind} {name} {problem}; {INSTEAD}")


def _is_layer(module: object) -> bool:
    return isinstance(module, (_ConvNd, nn.Linear))


def _is_depthwise(module: object) -> bool:
    return isinstance(module, _ConvNd) and module.groups == module.out_channels == module.in_channels > 1


def _forward(node: Any, *, past_norms: bool) -> Iterator[Any]:  # noqa: ANN401
    """The first layers with weights after a layer, and the end of the network where it is reached without one."""
    waiting, seen = [node], {node}
    while waiting:
        present = waiting.pop()
        if not present.outputs or (present is not node and _is_layer(present.module)):
            yield present
        elif past_norms or not isinstance(present.module, _NormBase):
            waiting += [after for after in present.outputs if after not in seen]
            seen.update(present.outputs)
