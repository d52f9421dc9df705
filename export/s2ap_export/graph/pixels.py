"""Images as the stages see them, as graph: what is no pixel in [0, 1] becomes one, and its image is known for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from s2ap_export.graph.builder import GraphBuilder

__all__ = ["Pixels", "sanitise"]


@dataclass(frozen=True)
class Pixels:
    """Names of values.

    Attributes:
        image: float32 [N, C, H, W], the image with NaN as .5 and everything else clamped to [0, 1].
        valid: bool [N, 1], whether all its pixels were in [0, 1].
        finite: bool [N, 1], whether all were finite.
    """

    image: str
    valid: str
    finite: str


def sanitise(build: GraphBuilder, image: str, name: str) -> Pixels:
    """Bring an image to [0, 1] under this name; images in [0, 1] stay as they are."""
    zero, one, half = (build.constant(np.float32(value)) for value in (0, 1, 0.5))
    number = build.op("Where", build.op("IsNaN", image), half, image)
    build.nodes.append(helper.make_node("Clip", [number, zero, one], [name], name=name))
    nothing = build.op("Sub", image, image)  # NaN where it is not finite
    return Pixels(name, _all_equal(build, image, name), _all_equal(build, nothing, zero))


def _all_equal(build: GraphBuilder, left: str, right: str) -> str:
    """Whether all pixels of an image are equal, bool [N, 1]."""
    equal = build.op("Cast", build.op("Equal", left, right), to=TensorProto.INT32)
    lowest = build.op("ReduceMin", build.op("Flatten", equal, axis=1), build.integers(1), keepdims=1)
    return build.op("Cast", lowest, to=TensorProto.BOOL)
