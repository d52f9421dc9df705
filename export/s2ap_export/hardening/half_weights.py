"""Weights in float16, everything else in float32: half the bytes of a file at no time on a CPU."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from s2ap_defend.errors import RecipeError
from s2ap_defend.half_weights import is_sum, weight_names
from s2ap_export.hardening.precision import ROUNDED_WEIGHTS, precision_of

__all__ = ["to_half_weights"]


def to_half_weights(stage: ModelProto) -> ModelProto:
    """A stage whose convolutions and products have weights that float16 holds; it computes in float32, as before.

    Args:
        stage: As `trace_classifier` gives it, float32.

    Raises:
        RecipeError: If a weight is too large for float16, or the stage is in less than float32 already.
    """
    if precision_of(stage) != "float32":
        raise RecipeError(
            f"stage {stage.graph.name} is in {precision_of(stage)} already; convert the float32 stage, once"
        )
    rounded = ModelProto()
    rounded.CopyFrom(stage)
    names = weight_names(rounded.graph.node)
    for tensor in rounded.graph.initializer:
        if tensor.name not in names or tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if is_sum(values):
            continue
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise RecipeError(
                f"weight {tensor.name} holds {float(np.abs(values).max()):.3g}, float16 ends at 65504; keep this stage "
                "in float32"
            )
        tensor.CopyFrom(numpy_helper.from_array(halves.astype(np.float32), tensor.name))
    helper.set_model_props(rounded, {ROUNDED_WEIGHTS: "float16"})
    onnx.checker.check_model(rounded, full_check=True)
    return rounded
