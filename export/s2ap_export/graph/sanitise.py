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
    row = build.constant(np.array([0, 1, -1], dtype=np.int64))
    last = build.constant(np.array([2], dtype=np.int64))
    kept = build.op("Reshape", build.op("Equal", "image", IMAGE), row)
    valid = build.op("ReduceMin", kept, last, keepdims=1)
    zero = build.constant(np.float32(0))
    pixels = build.constant(np.array([1, 2, 3], dtype=np.int64))
    spoilt = build.op("ReduceSum", build.op("Mul", "image", zero), pixels, keepdims=0)  # 0 or NaN
    return Sanitised(IMAGE, valid, build.op("Equal", spoilt, zero))
