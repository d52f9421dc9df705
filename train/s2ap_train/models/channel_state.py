"""What is known of the tensors of a network's pass: the channel of each number, and what a gate must reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from s2ap_train.models.channel_labels import NOTHING, Labels, varies

Role = Literal["output", "input", "element"]
"""What a dimension of a parameter is to a layer; elements of a parameter that is no layer's weight have neither."""


@dataclass
class Seen:
    """What is known of a tensor.

    Attributes:
        make: Its labels, of its shape; made when they are asked for.
        raw: Parameters that must be gated for its channels to be 0; none behind a normalisation, which is gated itself.
        constant: Whether it is computed from parameters and buffers only.
        weight: Name of the parameter that it is, and the parameter's dimension of each of its own.
    """

    make: Callable[[], Tensor]
    raw: frozenset[str] = frozenset()
    constant: bool = False
    weight: tuple[str, tuple[int, ...]] | None = None

    @cached_property
    def labels(self) -> Tensor:
        """Channel of each number; 0 = of none."""
        return self.make()


class ChannelState:
    """What a pass found out so far.

    Attributes:
        labels: Which channels are coupled, and which must stay.
        axes: By parameter or buffer, dimension and role: labels along it.
        elements: By parameter or buffer that is no layer's weight: labels of its shape.
        norms: Scales and shifts of normalisations.
        read: Parameters whose output a layer reads as it is, without normalisation in between.
        running: Paths of the modules that run, innermost last, and the modules.
    """

    def __init__(self, model: nn.Module) -> None:
        """Begin with nothing known but the names of the model's parameters and buffers."""
        self.labels = Labels()
        self.axes: dict[tuple[str, int, Role], Tensor] = {}
        self.elements: dict[str, Tensor] = {}
        self.norms: set[str] = set()
        self.read: set[str] = set()
        self.running: list[tuple[str, nn.Module]] = []
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in tensors}

    def known(self, value: Tensor) -> Seen | None:
        """What is known of a tensor that is no parameter and no buffer."""
        raise NotImplementedError

    def of(self, value: object) -> Seen | None:
        """What is known of an operator's argument."""
        if not isinstance(value, Tensor):
            return None
        name = self._names.get(id(value))
        if name is None:
            return self.known(value)
        if not value.is_floating_point():
            return None

        def element_labels() -> Tensor:
            if name not in self.elements:
                self.elements[name] = self.labels.fresh(*value.shape)
            return self.elements[name]

        return Seen(element_labels, frozenset({name}), constant=True, weight=(name, tuple(range(value.dim()))))

    def _joined(self, inputs: list[Seen], shape: torch.Size, *, multiplies: bool = False) -> Seen:
        """An operator on each number: what meets is one channel, but what is spread over several is none of them."""
        sides = [_padded(seen.labels, len(shape)) for seen in inputs]
        result = torch.zeros((), dtype=torch.float64)
        for place, seen in enumerate(inputs):
            side = self._alone(seen, sides[place], sides[:place] + sides[place + 1 :], shape)
            self.labels.unify(result, side)
            result = torch.where(result == NOTHING, side, result)
        changing = [seen for seen in inputs if not seen.constant] if multiplies else []
        raw = frozenset[str]().union(*(seen.raw for seen in changing or inputs))
        return Seen(lambda: result.expand(shape), raw, all(seen.constant for seen in inputs))

    def _alone(self, seen: Seen, side: Tensor, others: list[Tensor], shape: torch.Size) -> Tensor:
        """Labels without those that a broadcast spreads over several channels."""
        dims = tuple(dim for dim, size in enumerate(shape) if side.shape[dim] == 1 < size)
        for other in others if dims else []:
            spread = varies(other, dims) & (side != NOTHING)
            if bool(spread.any()):
                if not seen.constant:
                    self.labels.keep(torch.where(spread, side, NOTHING), self._said("spreads them over others"))
                side = torch.where(spread, NOTHING, side)
        return side

    def _stopped(self, inputs: list[Seen], shape: torch.Size, problem: str) -> Seen:
        """Channels end here: what went in stays, and what comes out."""
        for seen in inputs:
            if not seen.constant:
                self._keep(seen, problem)
        label = self.labels.fresh(1)
        self.labels.keep(label, self._said(problem))
        return Seen(lambda: label.expand(shape), constant=all(seen.constant for seen in inputs))

    def _keep(self, seen: Seen, problem: str) -> None:
        self.labels.keep(seen.labels, self._said(problem))

    def _said(self, problem: str) -> str:
        path, module = self.running[-1]
        return f"{type(module).__name__} {path} {problem}" if path else f"{type(module).__name__} {problem}"

    def _note_read(self, seen: Seen | None) -> None:
        self.read |= seen.raw if seen is not None else set()

    def _axis(self, name: str, dim: int, parameter: Tensor, role: Role, at: int | None = None) -> Tensor:
        """Labels along a dimension of a weight; `at` is that dimension where the weight is used transposed."""
        for other in ("output", "input"):
            if (name, dim, other) in self.axes:
                self.axes[name, dim, role] = self.axes[name, dim, other]
        if (name, dim, role) not in self.axes:
            self.axes[name, dim, role] = self.labels.fresh(parameter.shape[dim if at is None else at])
        return self.axes[name, dim, role]

    def _labels_of(self, value: Any) -> Any:  # noqa: ANN401
        """The labels in place of a tensor of numbers."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        seen = self.of(value)
        return torch.zeros(value.shape, dtype=torch.float64) if seen is None else seen.labels


def along(labels: Tensor, dim: int, dims: int) -> Tensor:
    """Labels [..., n] as a view of so many dimensions, the given one the first of theirs."""
    return labels.reshape([1] * dim + list(labels.shape) + [1] * (dims - dim - labels.dim()))


def _padded(labels: Tensor, dims: int) -> Tensor:
    return labels.reshape([1] * (dims - labels.dim()) + list(labels.shape))
