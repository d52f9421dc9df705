"""Groups of channels that a network couples, and the channels that have to stay, found in one pass of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.channel_state import Role
from s2ap_train.models.channel_trace import LOGITS, ChannelTrace
from s2ap_train.models.modes import device_of

INSTEAD = "use an unstructured or 2:4 mask for this network"

Rows = tuple[int, ...]
"""Along a dimension of a parameter the channel of each entry; -1 = of another group, or one that stays."""


@dataclass(frozen=True)
class Place:
    """Where a parameter or buffer holds channels of a group.

    Attributes:
        name: Of the parameter or buffer.
        dim: Its dimension.
        role: What the dimension is: outputs or inputs of a layer's weight, or elements of any other tensor.
        rows: The channel of each entry.
    """

    name: str
    dim: int
    role: Role
    rows: Rows

    @property
    def count(self) -> int:
        """Entries that belong to the group."""
        return sum(channel >= 0 for channel in self.rows)

    @property
    def share(self) -> float:
        """The same as a fraction of the dimension."""
        return self.count / len(self.rows)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together.

    Attributes:
        name: Of the first weight that produces them, in the order of `named_parameters`.
        size: Number of channels. Where a layer ties several of its outputs, as halves that are multiplied, these count
            as one.
        gates: Parameters that are multiplied by the gate [size], so that a closed channel is exactly 0 for whoever
            reads it: scale and shift of the normalisations, and weight and bias of a producer that something reads
            without normalisation in between.
        places: Everything that shrinks with the channels.
    """

    name: str
    size: int
    gates: tuple[str, ...]
    places: tuple[Place, ...] = field(hash=False, repr=False)

    @property
    def producers(self) -> dict[str, Place]:
        """By weight that writes these channels: its outputs."""
        return {place.name: place for place in self.places if place.role == "output"}

    @property
    def consumers(self) -> dict[str, Place]:
        """By weight that reads these channels: its inputs; a layer behind a flattened image has one a pixel."""
        return {place.name: place for place in self.places if place.role == "input"}

    @property
    def gated(self) -> dict[str, Place]:
        """By gated parameter: the dimension along which it is multiplied."""
        return {place.name: place for place in self.places if place.name in self.gates and place.role != "input"}


@dataclass(frozen=True)
class ChannelReport:
    """What of a network can be removed by channel.

    Attributes:
        groups: In the order of the parameters.
        whole: By weight that none of the groups covers why it keeps all its outputs.
    """

    groups: tuple[ChannelGroup, ...]
    whole: Mapping[str, str] = field(hash=False)


def find_channels(model: nn.Module, image_shape: tuple[int, int, int]) -> ChannelReport:
    """Follow one pass of a network.

    Raises:
        RecipeError: If the pass fails.
    """
    here = model if device_of(model).type == "cpu" else copy.deepcopy(model).cpu()  # where labels are
    try:
        trace = ChannelTrace(here, image_shape)
    except Exception as error:  # whatever the user's module raises
        raise RecipeError(
            f"the channels of this {type(model).__name__} cannot be followed: {type(error).__name__}: {error}; "
            f"{INSTEAD}"
        ) from error
    order = {name: n for n, (name, _) in enumerate([*model.named_parameters(), *model.named_buffers()])}
    return _Found(trace, order, {name for name, _ in model.named_buffers()}).report()


class _Found:
    """The labels of a trace, joined."""

    def __init__(self, trace: ChannelTrace, order: Mapping[str, int], buffers: set[str]) -> None:
        self._gateable = trace.norms | trace.read
        self._order = order
        for name in sorted(buffers & trace.read & trace.elements.keys()):
            trace.labels.keep(trace.elements[name], f"the buffer {name} is added to them, which no gate closes")
        self._root, self._reasons = trace.labels.components()
        axes = [(*key, self._root[labels.long()]) for key, labels in trace.axes.items()]
        for name, labels in trace.elements.items():
            found = self._root[labels.long()]
            axis = _element_axis(name, found)
            if axis is not None:
                axes.append(axis)
            else:
                why = f"{name} holds them along no single dimension"
                self._reasons |= {label: why for label in torch.unique(found).tolist() if label not in self._reasons}
        self._axes: list[tuple[str, int, Role, Tensor]] = sorted(axes, key=lambda axis: (order[axis[0]], axis[1]))
        self._channel = torch.full((len(self._root),), -1)  # by component its number in its group
        self._group = torch.full((len(self._root),), -1)

    def report(self) -> ChannelReport:
        """Groups of the components that something writes, something reads and nothing keeps."""
        writers = [(name, found) for name, _, role, found in self._axes if role == "output"]
        usable = self._held([found for _, found in writers])
        usable &= self._held([found for _, _, role, found in self._axes if role == "input"])
        usable[list(self._reasons)] = False
        names: list[str] = []
        for name, found in writers:
            inside = found[usable[found]]
            if len(inside) == 0:
                continue
            earlier = torch.unique(self._group[inside])
            earlier = earlier[earlier >= 0]
            if len(earlier) == 0:
                names.append(name)
            number = len(names) - 1 if len(earlier) == 0 else int(earlier[0])
            self._join(earlier)
            new = list(dict.fromkeys(inside[self._group[inside] < 0].tolist()))
            self._add(torch.tensor(new, dtype=torch.long), number)
        groups = [group for group in self._made(names) if group.size > 1 or group.producers[group.name].count == 1]
        covered = {name for group in groups for name in group.producers}
        whole = {name: why for name, found in writers if name not in covered and (why := self._why_whole(found))}
        return ChannelReport(tuple(groups), whole)

    def _join(self, groups: Tensor) -> None:
        """Make one group of several, which a weight writes together."""
        for other in groups[1:].tolist():
            members = (self._group == other).nonzero().flatten()
            self._add(members[self._channel[members].argsort()], int(groups[0]))

    def _add(self, components: Tensor, group: int) -> None:
        start = int((self._group == group).sum())
        self._group[components] = group
        self._channel[components] = torch.arange(start, start + len(components))

    def _made(self, names: Sequence[str]) -> Iterator[ChannelGroup]:
        """The groups of these names, by their numbers; what was joined to another is none."""
        places: dict[int, list[Place]] = {number: [] for number in range(len(names))}
        for own, dim, role, found in self._axes:
            groups = self._group[found]
            for number in torch.unique(groups[groups >= 0]).tolist():
                rows = torch.where(groups == number, self._channel[found], -1)
                places[number].append(Place(own, dim, role, tuple(rows.tolist())))
        sizes = torch.bincount(self._group[self._group >= 0], minlength=len(names)).tolist()
        for held, size, name in zip(places.values(), sizes, names, strict=True):
            gates = {place.name for place in held if place.role != "input"} & self._gateable
            if size:
                yield ChannelGroup(name, size, tuple(sorted(gates, key=self._order.__getitem__)), tuple(held))

    def _why_whole(self, found: Tensor) -> str | None:
        """Why a weight keeps all its outputs; None if they are logits, or nothing reads them."""
        labels = torch.unique(found).tolist()
        reasons = [self._reasons[label] for label in labels if label in self._reasons]
        if not reasons and bool((self._group[found] >= 0).any()):
            return f"its {found.numel()} outputs are one channel to what reads them"
        return next((why for why in reasons if why != LOGITS), None)

    def _held(self, found: list[Tensor]) -> Tensor:
        """Whether a component is in any of these, bool by component."""
        held = torch.zeros(len(self._root), dtype=torch.bool)
        for components in found:
            held[components] = True
        return held


def _element_axis(name: str, found: Tensor) -> tuple[str, int, Role, Tensor] | None:
    """The dimension along which a tensor's elements are of different channels."""
    for dim, size in enumerate(found.shape):
        moved = found.movedim(dim, 0).reshape(size, -1)
        if size > 1 and bool((moved == moved[:, :1]).all()):
            return name, dim, "element", moved[:, 0]
    return None
