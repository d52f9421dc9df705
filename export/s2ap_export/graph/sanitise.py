"""What a graph does with pixels that are no pixels: it flags their image and hides them from all stages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import helper

from s2ap_export.graph.builder import GraphBuilder

__all__ = ["IMAGE", "Sanitised", "sanitise"]

IMAGE = "test/image"


@dataclass(frozen=True)
class Sanitised:
    """Names of values.

    Attributes:
        image: float32 [N, C, H, W]: NaN is 0.5, then clamped to [0, 1]; the bits of valid images are kept.
        valid: bool [N, 1, 1], whether all pixels are in [0, 1].
        finite: bool [N], whether all pixels are finite.
    """

    image: str
    valid: str
    finite: str


def sanitise(build: GraphBuilder) -> Sanitised:
    """Sanitise the input `image`."""
    number = build.op("Where", build.op("IsNaN", "image"), build.constant(np.float32(0.5)), "image")
    bounds = (build.constant(np.float32(value)) for value in (0, 1))
    build.nodes.append(helper.make_node("Clip", [number, *bounds], [IMAGE], name=IMAGE))
    change = build.op("Sub", "image", IMAGE)  # 0 where it is valid; not finite where the pixel is not
    row = build.op("Reshape", change, build.constant(np.array([0, 1, -1], dtype=np.int64)))  # [N, 1, C H W]
    zero = build.constant(np.float32(0))
    last, but_first = (build.constant(np.array(axes, dtype=np.int64)) for axes in ([2], [1, 2]))
    size = build.op("ReduceSum", build.op("Abs", row), last, keepdims=1)
    spoilt = build.op("ReduceSum", build.op("Mul", row, zero), but_first, keepdims=0)  # 0 or NaN
    return Sanitised(IMAGE, build.op("Equal", size, zero), build.op("Equal", spoilt, zero))
