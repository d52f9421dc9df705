"""A stage in the precision that a recipe asks for."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from s2ap_defend.precision_record import Precision
from s2ap_defend.types import Float32
from s2ap_export.hardening.half_weights import to_half_weights
from s2ap_export.hardening.int8 import to_int8
from s2ap_export.hardening.precision import to_half

__all__ = ["in_precision"]

_IMAGES = 512
"""Clean images that scales of 8 bits are fitted to at most; they are taken evenly from all."""


def in_precision(stage: ModelProto, precision: Precision, images: Float32, *, tensorrt: bool) -> ModelProto:
    """The stage with its convolutions in this precision; input, outputs and names stay as they are.

    Args:
        stage: As it was traced, float32.
        precision: Of its convolutions.
        images: Clean ones that it was not trained on, float32 [N, C, H, W].
        tensorrt: Whether TensorRT has to take it.

    Raises:
        RecipeError: If the stage cannot be in this precision.
    """
    match precision:
        case "float16":
            return to_half(stage)
        case "float16_weights":
            return to_half_weights(stage)
        case "int8":
            rows = np.linspace(0, len(images) - 1, min(_IMAGES, len(images))).astype(np.int64)
            return to_int8(stage, images[rows], symmetric=tensorrt)
        case "float32":
            return stage
