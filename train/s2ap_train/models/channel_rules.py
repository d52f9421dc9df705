"""How each of torch's operators carries channels on: by rearranging, joining, reading, writing or mixing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from s2ap_train.models.channel_labels import NOTHING, varies
from s2ap_train.models.channel_state import ChannelState, Seen, along

Operator = Any  # torch's operators have no useful type

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


class ChannelRules(ChannelState):
    """The rules, by operator."""

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
        if name in _SAME or name in {"_softmax", "_safe_softmax", "_log_softmax", "glu"}:
            return [self._within(name, args, inputs[0])]
        if _is_pointwise(name):
            return [self._joined(inputs, shape, multiplies=name in _MULTIPLYING)]
        return [
            self._stopped(inputs, value.shape, f"computes {name}") for value in outputs if isinstance(value, Tensor)
        ]

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
            self.labels.unify(_split(read, groups), along(first, 1, read.dim() + 1))
            written = first.expand(groups, per_group[0]).reshape(-1)
        else:
            columns = self._axis(name, 0 if transposed else 1, weight, "input")
            rows = self._axis(name, 1 if transposed else 0, weight, "output")
            split = _split(read, groups)
            inner = columns.reshape(-1, per_group[1])  # of a transposed weight [groups, I / groups], else [1, ...]
            self.labels.unify(inner, inner[:1])
            self.labels.unify(split, along(inner[:1], 1, split.dim()))
            written = rows.repeat(groups) if transposed else rows
            self.labels.unify(written.reshape(groups, -1), written.reshape(groups, -1)[:1])
            self._note_read(features)
        out = Seen(lambda: along(written, 1, len(shape)).expand(shape), frozenset({name}))
        return out if shift is None else self._with_bias(out, shift, written)

    def _with_bias(self, out: Seen, bias: Seen, written: Tensor) -> Seen:
        self.labels.unify(bias.labels, written)
        return replace(out, raw=out.raw | bias.raw)

    def _multiplied(self, args: tuple[Any, ...], start: int, inputs: list[Seen], shape: torch.Size) -> Seen:
        """A product of matrices: a layer where one of them is a weight as it is, or transposed."""
        left, right = self.of(args[start]), self.of(args[start + 1])
        weight = right if right is not None and right.weight is not None else left
        if weight is None or weight.weight is None or len(weight.weight[1]) != 2 or (left and right) is None:
            if left is None or right is None or left.constant or right.constant:
                return self._stopped(inputs, shape, _COMPUTED)
            attended = self._attended(left, right, shape)
            added = self.of(args[0]) if start else None
            return attended if added is None else self._joined([attended, added], shape)
        name, dims = weight.weight
        parameter = args[start + 1] if weight is right else args[start]
        features = left if weight is right else right
        assert features is not None  # noqa: S101  (both are known here)
        inner, outer = (0, 1) if weight is right else (1, 0)
        columns = self._axis(name, dims[inner], parameter, "input", at=inner)
        rows = self._axis(name, dims[outer], parameter, "output", at=outer)
        self.labels.unify(features.labels, along(columns, 1 - inner, features.labels.dim()))
        self._note_read(features)
        out = Seen(lambda: along(rows, outer, len(shape)).expand(shape), frozenset({name}))
        bias = self.of(args[0]) if start else None
        return out if bias is None else self._joined([out, bias], shape)

    def _attended(self, left: Seen, right: Seen, shape: torch.Size) -> Seen:
        """A product of activations, as in attention: what it sums over is one channel, as the numbers of a head are.

        It is 0 where one of both is: a head whose queries, keys and values are 0 gives nothing to what reads it.
        """
        rows, columns = left.labels.narrow(-1, 0, 1), right.labels.narrow(-2, 0, 1)
        self.labels.unify(left.labels, rows)
        self.labels.unify(right.labels, columns)
        self.labels.unify(rows, columns)
        return Seen(lambda: torch.where(rows == NOTHING, columns, rows).expand(shape), left.raw | right.raw)

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
            self.labels.unify(features.labels, along(seen.labels, 1, features.labels.dim()))
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
