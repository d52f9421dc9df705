"""How each of torch's operators carries channels on: by rearranging, joining, reading, writing or mixing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from s2ap_train.models.channel_labels import NOTHING, Labels, varies

Operator = Any  # torch's operators have no useful type
Role = Literal["output", "input", "element"]
"""What a dimension of a parameter is to a layer; elements of a parameter that is no layer's weight have neither."""

_SAME = {"_to_copy", "clone", "detach", "detach_", "alias", "contiguous", "lift_fresh"}
_REARRANGING = {
    *("permute", "transpose", "t", "expand", "slice", "select"),
    *("split", "split_with_sizes", "unbind", "cat", "stack", "squeeze", "unsqueeze", "constant_pad_nd", "roll", "flip"),
    *("pixel_shuffle", "pixel_unshuffle", "repeat", "unfold", "channel_shuffle", "native_channel_shuffle", "embedding"),
    *("index", "index_select", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
    *("diagonal", "im2col"),
}
_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
_REDUCING = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "linalg_vector_norm", "logsumexp", "prod"}
_NORMS = {"native_group_norm", "native_layer_norm", "_fused_rms_norm"}
_MULTIPLYING = {"mul", "mul_", "_prelu_kernel", "prelu"}
_POINTWISE = {"hardswish", "_prelu_kernel", "prelu", "log_sigmoid_forward", "rrelu_with_noise", "copy", "fill", "zero"}
_MATRIX = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1, "mv": 0, "addmv": 1}  # where the two factors begin
_COMPUTED = "has a weight that is computed from others"


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


class ChannelRules:
    """The rules, and what they find out.

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

    def follow(
        self, func: Operator, args: tuple[Any, ...], inputs: list[Seen], outputs: Sequence[Any]
    ) -> Sequence[Seen | None]:
        """What is known of an operator's outputs, by what is known of its inputs."""
        name, shape = func._schema.name.removeprefix("aten::"), outputs[0].shape
        if name in _REARRANGING or name in _VIEWS:
            return self._rearranged(func, name, args, inputs, outputs)
        if name in _MATRIX:
            return [self._multiplied(args, _MATRIX[name], inputs, shape)]
        if name in _REDUCING and isinstance(args[0], Tensor):
            return [self._reduced(name, args, inputs[0], shape)]
        if name == "convolution":
            return [self._convolved(args, shape)]
        if "batch_norm" in name or name in _NORMS:
            return [self._normalised(name, args, inputs)]
        if "pool" in name or "upsample" in name:
            return [self._resampled(inputs[0], outputs[0])]
        if name in _SAME or name in {"_softmax", "_log_softmax", "glu"}:
            return [self._within(name, args, inputs[0])]
        if _is_pointwise(name):
            return [self._joined(inputs, shape, multiplies=name in _MULTIPLYING)]
        return [
            self._stopped(inputs, value.shape, f"computes {name}") for value in outputs if isinstance(value, Tensor)
        ]

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

    def _within(self, name: str, args: tuple[Any, ...], features: Seen) -> Seen:
        """Operators of one tensor."""
        if name == "glu":
            halves = features.labels.chunk(2, args[1] if len(args) > 1 else -1)
            self.labels.unify(*halves)
            return replace(features, make=lambda: halves[0], weight=None)
        if name not in _SAME and bool(varies(features.labels, (args[1],)).any()):
            self._keep(features, "normalises over channels")
        return replace(features, make=lambda: features.labels)

    def _rearranged(
        self,
        func: Operator,
        name: str,
        args: tuple[Any, ...],
        inputs: list[Seen],
        outputs: Sequence[Any],
    ) -> list[Seen | None]:
        """The same operator on the labels."""
        raw = frozenset[str]().union(*(seen.raw for seen in inputs))
        constant = all(seen.constant for seen in inputs)
        if name == "constant_pad_nd":
            args = (*args[:2], 0)
        if name in _VIEWS:
            func = torch.reshape  # labels have other strides

        def moved(index: int) -> Tensor:
            result = func(*tree_map(self._labels_of, args[:2] if name in _VIEWS else args))
            chosen: Tensor = result[index] if isinstance(result, list | tuple) else result
            return chosen

        found = [Seen(partial(moved, place), raw, constant) for place in range(len(outputs))]
        if inputs[0].weight is not None and name in {"t", "transpose", "permute"}:
            own, dims = inputs[0].weight
            placed = func(torch.empty([dim + 1 for dim in range(len(dims))], device="meta"), *args[1:]).shape
            found[0].weight = own, tuple(dims[size - 1] for size in placed)
        elif constant:
            pass
        elif name in _VIEWS:
            dim = _split_dimension(args[0].shape, outputs[0].shape)
            if dim is not None:  # such as the groups of a channel shuffle: each keeps as many
                self.labels.unify(found[0].labels, found[0].labels.narrow(dim, 0, 1))
        elif name in {"split", "split_with_sizes"} and len({value.shape for value in outputs}) == 1:
            for other in found[1:]:  # halves that were cut by a share stay equal
                self.labels.unify(found[0].labels, other.labels)
        return list(found)

    def _convolved(self, args: tuple[Any, ...], shape: torch.Size) -> Seen:
        given, weight, bias, *_, transposed, _, groups = args
        features, own, shift = self.of(given), self.of(weight), self.of(bias)
        if own is None or own.weight is None:
            return self._stopped([seen for seen in (features, own, shift) if seen], shape, _COMPUTED)
        name, read = own.weight[0], self._labels_of(given)
        per_group = (shape[1] // groups, given.shape[1] // groups)
        if groups > 1 and groupwise(groups, per_group[1]):  # what a group writes goes with what it reads
            rows = self._axis(name, 0, weight, "output")
            first = rows.reshape(groups, -1)[:, :1]
            self.labels.unify(rows.reshape(groups, -1), first)
            self.labels.unify(_split(read, groups), _along(first, 1, read.dim() + 1))
            written = first.expand(groups, per_group[0]).reshape(-1)
        else:
            columns = self._axis(name, 0 if transposed else 1, weight, "input")
            rows = self._axis(name, 1 if transposed else 0, weight, "output")
            split = _split(read, groups)
            inner = columns.reshape(-1, per_group[1])  # of a transposed weight [groups, I / groups], else [1, ...]
            self.labels.unify(inner, inner[:1])
            self.labels.unify(split, _along(inner[:1], 1, split.dim()))
            written = rows.repeat(groups) if transposed else rows
            self.labels.unify(written.reshape(groups, -1), written.reshape(groups, -1)[:1])
            self._note_read(features)
        out = Seen(lambda: _along(written, 1, len(shape)).expand(shape), frozenset({name}))
        return out if shift is None else self._with_bias(out, shift, written)

    def _with_bias(self, out: Seen, bias: Seen, written: Tensor) -> Seen:
        self.labels.unify(bias.labels, written)
        return replace(out, raw=out.raw | bias.raw)

    def _multiplied(self, args: tuple[Any, ...], start: int, inputs: list[Seen], shape: torch.Size) -> Seen:
        """A product of matrices: a layer where one of them is a weight as it is, or transposed."""
        left, right = self.of(args[start]), self.of(args[start + 1])
        weight = right if right is not None and right.weight is not None else left
        if weight is None or weight.weight is None or len(weight.weight[1]) != 2 or (left and right) is None:
            problem = _COMPUTED if any(seen.constant for seen in inputs) else "multiplies activations with one another"
            return self._stopped(inputs, shape, problem)
        name, dims = weight.weight
        parameter = args[start + 1] if weight is right else args[start]
        features = left if weight is right else right
        assert features is not None  # noqa: S101  (both are known here)
        inner, outer = (0, 1) if weight is right else (1, 0)
        columns = self._axis(name, dims[inner], parameter, "input", at=inner)
        rows = self._axis(name, dims[outer], parameter, "output", at=outer)
        self.labels.unify(features.labels, _along(columns, 1 - inner, features.labels.dim()))
        self._note_read(features)
        out = Seen(lambda: _along(rows, outer, len(shape)).expand(shape), frozenset({name}))
        bias = self.of(args[0]) if start else None
        return out if bias is None else self._joined([out, bias], shape)

    def _normalised(self, name: str, args: tuple[Any, ...], inputs: list[Seen]) -> Seen:
        """Batch normalisation, or group normalisation, whose groups go as a whole; others keep what they mix."""
        groups = args[6] if name == "native_group_norm" else None
        if groups is not None:
            args = args[:3]
        elif "batch_norm" not in name:
            self._keep(inputs[0], "normalises over channels")
            return replace(inputs[0], raw=frozenset())
        features, own = self.of(args[0]), [seen for value in args[1:5] if (seen := self.of(value)) is not None]
        gates = frozenset[str]().union(*(seen.raw for value in args[1:3] if (seen := self.of(value)) is not None))
        if features is None:
            return self._stopped(own, args[0].shape, _COMPUTED)
        if not gates:
            self._keep(
                features, "has no scale and shift that could be gated (give it affine=True), or they are computed"
            )
        for seen in own:
            self.labels.unify(features.labels, _along(seen.labels, 1, features.labels.dim()))
        if groups == 1:
            self._keep(features, "normalises over all channels")
        elif groups is not None:
            parts = _split(features.labels, groups)
            self.labels.unify(parts, parts.narrow(2, 0, 1))
        self.norms |= gates
        return replace(features, raw=frozenset())

    def _resampled(self, features: Seen, out: Tensor) -> Seen:
        """Every pixel of a channel is of that channel."""
        labels = features.labels
        pixels = tuple(range(labels.dim() - out.dim() + 2, labels.dim()))
        one = labels
        for dim in pixels:
            one = one.narrow(dim, 0, 1)
        self.labels.unify(labels, one)
        return replace(features, make=lambda: one.expand(out.shape), weight=None)

    def _reduced(self, name: str, args: tuple[Any, ...], features: Seen, shape: torch.Size) -> Seen:
        labels = features.labels
        given = args[1] if len(args) > 1 and name != "linalg_vector_norm" else args[2] if len(args) > 2 else None
        listed = [given] if isinstance(given, int) else given if isinstance(given, list | tuple) and given else None
        dims = tuple(range(labels.dim())) if listed is None else tuple(dim % labels.dim() for dim in listed)
        mixed = varies(labels, dims)
        if bool(mixed.any()):
            mixes = torch.where(mixed, labels, NOTHING)
            if name == "sum":  # what is 0 adds nothing
                self._note_read(features)
            else:
                self.labels.keep(mixes, self._said(f"takes the {name} over channels"))
        left = torch.where(mixed, NOTHING, labels.amax(dims, keepdim=True))
        return replace(features, make=lambda: left.reshape(shape), weight=None)

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


@cache
def _is_pointwise(name: str) -> bool:
    """Whether an operator computes each number by itself; torch does not tag all of them."""
    packet: Any = getattr(torch.ops.aten, name.removesuffix("_"))
    return name.removesuffix("_") in _POINTWISE or any(
        torch.Tag.pointwise in getattr(packet, each).tags for each in packet.overloads()
    )


def groupwise(groups: int, inputs_per_group: int) -> bool:
    """Whether channels of a grouped convolution leave by whole groups; else each group loses as many."""
    return groups >= inputs_per_group


def _split(labels: Tensor, groups: int) -> Tensor:
    """[N, C, ...] -> [N, groups, C / groups, ...]."""
    return labels.reshape(labels.shape[0], groups, -1, *labels.shape[2:])


def _along(labels: Tensor, dim: int, dims: int) -> Tensor:
    """Labels [..., n] as a view of so many dimensions, the given one the first of theirs."""
    return labels.reshape([1] * dim + list(labels.shape) + [1] * (dims - dim - labels.dim()))


def _padded(labels: Tensor, dims: int) -> Tensor:
    return labels.reshape([1] * (dims - labels.dim()) + list(labels.shape))


def _split_dimension(before: torch.Size, after: torch.Size) -> int | None:
    """The dimension that a view cuts in two, if that is all it does."""
    if len(after) != len(before) + 1:
        return None
    for dim, size in enumerate(before):
        if (
            before[:dim] == after[:dim]
            and size == after[dim] * after[dim + 1]
            and before[dim + 1 :] == after[dim + 2 :]
        ):
            return dim
    return None
