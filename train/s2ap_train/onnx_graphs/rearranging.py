"""ONNX operators that move, repeat or describe values, as torch functions.

Integer tensors (shapes, axes, indices) live on the CPU, whatever the device of the images.
"""

import math
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
    return lambda x: x.reshape(math.prod(x.shape[:axis]), -1)


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
        return picked.reshape((*x.shape[:along], *index.shape, *x.shape[along + 1 :]))  # a tuple: it may be empty

    return apply


def _gather_elements(attributes: Attributes) -> Function:
    axis = attributes.get("axis", 0)

    def apply(x: Tensor, index: Tensor) -> Tensor:
        return torch.gather(x, axis, (index % x.shape[axis]).to(x.device))

    return apply


def _gather_nd(attributes: Attributes) -> Function:
    if attributes.get("batch_dims", 0):
        raise ValueError("GatherND with batch_dims")
    return lambda x, index: x[tuple(index.to(x.device).unbind(-1))]


def _scatter_nd(attributes: Attributes) -> Function:
    if attributes.get("reduction", b"none") != b"none":
        raise ValueError(f"ScatterND with reduction {attributes['reduction'].decode()}")
    return lambda x, index, values: x.index_put(tuple(index.to(x.device).unbind(-1)), values.to(x.device))


def _depth_to_space(attributes: Attributes) -> Function:
    size, columns_first = attributes["blocksize"], attributes.get("mode", b"DCR") == b"DCR"

    def apply(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if columns_first:
            x = x.reshape(n, size * size, c // size**2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return functional.pixel_shuffle(x, size)

    return apply


def _space_to_depth(attributes: Attributes) -> Function:
    size = attributes["blocksize"]

    def apply(x: Tensor) -> Tensor:
        deep = functional.pixel_unshuffle(x, size)
        n, c, h, w = deep.shape
        return deep.reshape(n, c // size**2, size * size, h, w).transpose(1, 2).reshape(n, c, h, w)

    return apply


def _split(attributes: Attributes) -> Function:
    axis, fixed, count = attributes.get("axis", 0), attributes.get("split"), attributes.get("num_outputs", 1)

    def apply(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        length = x.shape[axis]
        each = -(-length // count)  # the last of num_outputs may be smaller
        chosen = fixed or [min(each, length - start) for start in range(0, length, each)]
        return tuple(torch.split_with_sizes(x, chosen if sizes is None else ints(sizes), dim=axis))

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
    value = attributes["value"]
    return lambda shape: value.reshape(()).expand(ints(shape)).clone()


REARRANGING: dict[str, Builder] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": lambda _: _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": lambda _: _identity,
    "Range": lambda _: _range,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Slice": lambda _: _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda _: _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By operator name: what makes the torch function from the node's attributes."""
