"""ONNX operators that move, repeat or describe values, as torch functions.

Integer tensors (shapes, axes, indices) live on the CPU, whatever the device of the images.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]
Function = Callable[..., Any]
Builder = Callable[[Attributes], Function]


def ints(tensor: Tensor) -> list[int]:
    """Entries of a shape, axes or index tensor."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


def _reshape(attributes: Attributes) -> Function:
    zero_is_zero = attributes.get("allowzero", 0)

    def apply(x: Tensor, shape: Tensor) -> Tensor:
        sizes = ints(shape)
        if not zero_is_zero:
            sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        return x.reshape(sizes)

    return apply


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(x.shape, tuple(ints(shape))))


def _flatten(attributes: Attributes) -> Function:
    axis = attributes.get("axis", 1)
    return lambda x: x.reshape(x.shape[:axis].numel(), -1)


def _squeeze(attributes: Attributes) -> Function:
    fixed = attributes.get("axes")

    def apply(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = fixed if fixed is not None else (ints(axes) if axes is not None else None)
        return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))

    return apply


def _unsqueeze(attributes: Attributes) -> Function:
    fixed = attributes.get("axes")

    def apply(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = fixed if fixed is not None else ints(axes if axes is not None else torch.empty(0))
        rank = x.dim() + len(chosen)
        for axis in sorted(axis % rank for axis in chosen):
            x = x.unsqueeze(axis)
        return x

    return apply


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    first, last = ints(starts), ints(ends)
    along = ints(axes) if axes is not None else list(range(len(first)))
    stride = ints(steps) if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(along, first, last, stride, strict=True):
        size = x.shape[axis]
        chosen = range(size)[slice(start, None if step < 0 and end < -size else end, step)]
        if step > 0:
            index: list[slice] = [slice(None)] * x.dim()
            index[axis] = slice(chosen.start, chosen.stop, step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


def _gather(attributes: Attributes) -> Function:
    axis = attributes.get("axis", 0)

    def apply(x: Tensor, index: Tensor) -> Tensor:
        along = axis % x.dim()
        flat = (index.reshape(-1) % x.shape[along]).to(x.device)
        picked = x.index_select(along, flat)
        return picked.reshape(*x.shape[:along], *index.shape, *x.shape[along + 1 :])

    return apply


def _split(attributes: Attributes) -> Function:
    axis, fixed, count = attributes.get("axis", 0), attributes.get("split"), attributes.get("num_outputs", 1)

    def apply(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        length = x.shape[axis]
        each = -(-length // count)  # the last of num_outputs may be smaller
        chosen = fixed or [min(each, length - start) for start in range(0, length, each)]
        return tuple(torch.split_with_sizes(x, chosen if sizes is None else ints(sizes), dim=axis))

    return apply


def _pad(attributes: Attributes) -> Function:
    if attributes.get("mode", b"constant") != b"constant":
        raise ValueError(f"Pad in mode {attributes['mode'].decode()}")

    def apply(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        amounts = ints(pads)
        along = ints(axes) if axes is not None else list(range(x.dim()))
        sides = dict.fromkeys(range(x.dim()), (0, 0))
        for i, axis in enumerate(along):
            sides[axis % x.dim()] = (amounts[i], amounts[i + len(along)])
        flat = [side for axis in reversed(range(x.dim())) for side in sides[axis]]
        return functional.pad(x, flat, value=0.0 if value is None else float(value))

    return apply


def _resize(attributes: Attributes) -> Function:
    mode = attributes.get("mode", b"nearest").decode()
    places = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    rounding = attributes.get("nearest_mode", b"round_prefer_floor").decode()
    if mode != "nearest" or (places, rounding) not in {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}:
        raise ValueError(f"Resize in mode {mode}, {places}, {rounding}")

    def apply(x: Tensor, roi: Tensor | None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:  # noqa: ARG001
        if sizes is not None:
            target = ints(sizes)[2:]
        else:
            factors = scales.tolist() if scales is not None else [1.0] * x.dim()
            target = [int(size * factor) for size, factor in zip(x.shape[2:], factors[2:], strict=True)]
        if any(new % old for new, old in zip(target, x.shape[2:], strict=True)):
            raise ValueError(f"Resize from {list(x.shape[2:])} to {target}, which is no whole multiple")
        return functional.interpolate(x, size=target, mode="nearest")

    return apply


def _concat(attributes: Attributes) -> Function:
    axis = attributes["axis"]
    return lambda *tensors: torch.cat(tensors, dim=axis)


def _transpose(attributes: Attributes) -> Function:
    order = attributes.get("perm")
    return lambda x: x.permute(*(order if order is not None else reversed(range(x.dim()))))


def _shape(attributes: Attributes) -> Function:
    start, end = attributes.get("start", 0), attributes.get("end")
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _identity(x: Tensor) -> Tensor:
    return x


def _tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(ints(repeats))


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _constant_of_shape(attributes: Attributes) -> Function:
    value = attributes.get("value", torch.zeros(1))
    return lambda shape: value.reshape(()).expand(ints(shape)).clone()


REARRANGING: dict[str, Builder] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": lambda _: _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda _: _identity,
    "Pad": _pad,
    "Range": lambda _: _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": lambda _: _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda _: _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By operator name: what makes the torch function from the node's attributes."""
