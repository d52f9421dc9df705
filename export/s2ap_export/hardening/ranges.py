"""How far the values of a stage reach, and the steps of 8 bits that lose least of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32, Float64, Int64
from s2ap_train.compute.memory import images_at_once

__all__ = ["Magnitudes", "observed"]

_PER_OCTAVE = 32  # bins as wide as 2 % of what they hold
_OCTAVES = 32  # on each side of 1
_LEAST, _CANDIDATES = 0.25, 64  # limits from a quarter of the largest value up to it
_ROWS = 64


class Magnitudes:
    """Absolute values of one value of a graph: the largest, and how many there are by size."""

    def __init__(self) -> None:
        self.largest = 0.0
        self.counts: Int64 = np.zeros(2 * _OCTAVES * _PER_OCTAVE, dtype=np.int64)

    def add(self, values: NDArray[np.floating]) -> None:
        """Count more values, of any shape; zeros are left out, every step has them."""
        sizes = np.abs(values[values != 0])
        if sizes.size:
            self.largest = max(self.largest, float(sizes.max()))
            places = np.floor(np.log2(sizes) * _PER_OCTAVE).astype(np.int64) + _OCTAVES * _PER_OCTAVE
            np.add.at(self.counts, places.clip(0, len(self.counts) - 1), 1)

    def step(self, levels: int) -> float:
        """The step with the least mean squared error, so many of which reach from zero; few values may lie beyond.

        1 where all values are zero.
        """
        if self.largest == 0.0:
            return 1.0
        there = np.flatnonzero(self.counts)
        sizes = np.exp2((there + 0.5) / _PER_OCTAVE - _OCTAVES).clip(max=self.largest)
        steps = np.linspace(_LEAST, 1.0, _CANDIDATES) * self.largest / levels
        return float(steps[np.argmin([_squared_error(sizes, self.counts[there], step, levels) for step in steps])])


def _squared_error(sizes: Float64, counts: Int64, step: float, levels: int) -> float:
    rounded = np.rint(sizes / step).clip(max=levels) * step
    return float((counts * (sizes - rounded) ** 2).sum())


def observed(stage: ModelProto, names: Sequence[str], images: Float32) -> dict[str, Magnitudes]:
    """What values of a stage are on images.

    Args:
        stage: With one input, `image`.
        names: Of values inside it, floating.
        images: float32 [N, C, H, W].

    Raises:
        RecipeError: If a value is not finite.
    """
    shown = ModelProto()
    shown.CopyFrom(stage)
    there = {output.name for output in shown.graph.output}
    inside = [name for name in names if name != "image"]
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inside if name not in there)
    engine, found = OnnxRuntimeEngine(shown.SerializeToString(), device="cpu"), {name: Magnitudes() for name in names}
    rows = images_at_once(_ROWS, images.shape)
    for at in range(0, len(images), rows):
        some = images[at : at + rows]
        for name, values in {
            "image": some,
            **dict(zip(inside, engine.run({"image": some}, inside), strict=True)),
        }.items():
            if not np.isfinite(values).all():
                raise RecipeError(
                    f"stage {stage.graph.name}: {name} is not finite on {len(images)} fitting images; keep "
                    "the stage in float32"
                )
            if name in found:
                found[name].add(values)
    return found
