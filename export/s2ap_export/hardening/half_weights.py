"""Weights in float16, everything else in float32: half the bytes of a file at no time on a CPU."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from s2ap_defend.half_weights import weight_names
from s2ap_export.hardening.precision import ROUNDED_WEIGHTS, check_single, half_of, is_sum

__all__ = ["to_half_weights"]


def to_half_weights(stage: ModelProto) -> ModelProto:
    """A stage whose convolutions and products have weights that float16 holds; it computes in float32, as before.

    Args:
        stage: As `trace_classifier` gives it, float32.

    Raises:
        RecipeError: If a weight is too large for float16, or the stage is in less than float32 already.
    """
    check_single(stage)
    rounded = ModelProto()
    rounded.CopyFrom(stage)
    names = weight_names(rounded.graph.node)
    for tensor in rounded.graph.initializer:
        if tensor.name in names and tensor.data_type == TensorProto.FLOAT and not is_sum(tensor):
            tensor.CopyFrom(numpy_helper.from_array(half_of(tensor).astype(np.float32), tensor.name))
    helper.set_model_props(rounded, {ROUNDED_WEIGHTS: "float16"})
    onnx.checker.check_model(rounded, full_check=True)
    return rounded
