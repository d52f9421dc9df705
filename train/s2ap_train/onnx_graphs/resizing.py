"""ONNX operators that pad and resize images, as torch functions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional

from s2ap_train.onnx_graphs.rearranging import Attributes, Builder, Function, ints

__all__ = ["RESIZING"]


def _pad(attributes: Attributes) -> Function:
    mode = attributes.get("mode", b"constant").decode()
    if mode not in {"constant", "edge", "reflect", "wrap"}:
        raise ValueError(f"Pad in mode {mode}")

    def apply(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        amounts = ints(pads)
        along = ints(axes) if axes is not None else list(range(x.dim()))
        sides = {axis % x.dim(): (amounts[i], amounts[i + len(along)]) for i, axis in enumerate(along)}
        if mode == "constant":
            flat = [side for axis in reversed(range(x.dim())) for side in sides.get(axis, (0, 0))]
            return functional.pad(x, flat, value=0.0 if value is None else float(value))
        for axis, (before, after) in sides.items():
            if before or after:
                x = x.index_select(axis, _places(mode, x.shape[axis], before, after).to(x.device))
        return x

    return apply


def _places(mode: str, size: int, before: int, after: int) -> Tensor:
    """Where the values of a padded axis come from."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)
    folded = places % period
    return torch.minimum(folded, period - folded)


def _resize(attributes: Attributes) -> Function:
    mode = attributes.get("mode", b"nearest").decode()
    layout = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    rounding = attributes.get("nearest_mode", b"round_prefer_floor").decode()
    known = layout in {"align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel"}
    known &= mode in {"cubic", "linear", "nearest"} and rounding in _ROUNDING
    if not known or any(attributes.get(key) for key in ("antialias", "exclude_outside")) or "axes" in attributes:
        raise ValueError(f"Resize in mode {mode}, {layout}, {rounding}")
    cubic = float(attributes.get("cubic_coeff_a", -0.75))

    def apply(x: Tensor, roi: Tensor | None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:  # noqa: ARG001
        before = list(x.shape)
        if sizes is not None:
            target = ints(sizes)
            factors = [Fraction(new, old) for new, old in zip(target, before, strict=True)]
        else:
            given = [1.0] * x.dim() if scales is None else scales.tolist()
            factors = [Fraction(factor).limit_denominator(1 << 20) for factor in given]
            target = [int(size * factor) for size, factor in zip(before, factors, strict=True)]
        for axis in range(x.dim()):
            if target[axis] != before[axis]:
                at = _coordinates(layout, before[axis], target[axis], factors[axis])
                x = _sampled(x, axis, at, mode, rounding, cubic)
        return x

    return apply


_ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "ceil": torch.ceil,
    "floor": torch.floor,
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
}


def _coordinates(layout: str, before: int, after: int, factor: Fraction) -> Tensor:
    """Where on an axis the values of the resized one lie, float64."""
    half = Fraction(1, 2)
    if layout == "align_corners":
        exact = [Fraction(i * (before - 1), after - 1) if after > 1 else Fraction(0) for i in range(after)]
    elif layout == "asymmetric":
        exact = [i / factor for i in range(after)]
    elif layout == "pytorch_half_pixel" and after == 1:
        exact = [Fraction(0)]
    else:
        exact = [(i + half) / factor - half for i in range(after)]
    return torch.tensor([float(place) for place in exact], dtype=torch.float64)


def _sampled(x: Tensor, axis: int, at: Tensor, mode: str, rounding: str, cubic: float) -> Tensor:
    """An axis read at these places, beyond its ends as at them."""
    size = x.shape[axis]
    if mode == "nearest":
        nearest = _ROUNDING[rounding](at).clamp(0, size - 1).long()
        return x.index_select(axis, nearest.to(x.device))
    first = at.floor()
    weights = torch.zeros(len(at), size, dtype=torch.float64)
    for tap in (-1, 0, 1, 2) if mode == "cubic" else (0, 1):
        distance = (at - first - tap).abs()
        share = _cubic(distance, cubic) if mode == "cubic" else 1 - distance
        places = (first + tap).clamp(0, size - 1).long()
        weights.scatter_add_(1, places[:, None], share[:, None])
    return (x.movedim(axis, -1) @ weights.to(x.device, x.dtype).t()).movedim(-1, axis)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic kernel at distances up to 2 (Keys 1981, DOI 10.1109/TASSP.1981.1163711)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)


RESIZING: dict[str, Builder] = {"Pad": _pad, "Resize": _resize}
"""By operator name: what makes the torch function from the node's attributes."""
