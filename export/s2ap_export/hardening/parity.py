"""Whether exported stages say what their networks say: asked of the engine that serves, before a file is made of them.

Two float32 computations of one network differ by roundings, 2**-24 each. A sum of n of them strays by sqrt(n) on
average (Higham and Mary 2019): about 70 for the 4608 terms of a wide convolution. Twenty of these one after the other
make 2e-5 of the largest answer; five times that is allowed. Where convolutions compute in float16, each adds three
roundings of 2**-11, of its inputs, its weights and its results; 8 bits round to 2**-8 of the largest value.

An image's answer may not depend on its neighbours, whoever wrote the stage. What our own trace writes gives the same
bits in every batch, except where ONNX Runtime computes an activation (softplus) in vectors and the rest one by one;
products of matrices, which torch's exporter writes, may take other kernels at other batch sizes. Answers in batches of
other sizes may therefore differ as much as any other two computations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32
from s2ap_export.hardening.precision import CONVOLUTIONS, precision_of
from s2ap_train.compute.threads import one_thread
from s2ap_train.onnx_graphs import UndifferentiableError, torch_stage

__all__ = ["check_stage"]

PIXEL = 1e-4
"""Largest difference of a purified pixel, float32: a fortieth of one of 256 grey levels."""
RELATIVE = 1e-4
"""Largest difference of log-probabilities or errors, relative to the largest of them, float32."""
ROUNDING = {"float32": 0.0, "float16_weights": 2.0**-11, "float16": 2.0**-11, "int8": 2.0**-8}
"""Of one number, in each precision, beyond what float32 rounds."""
MARGIN = 3  # standard deviations of a random walk
BATCHES = (1, 2, 5)
"""Sizes of the batches, one after the other, in which images are answered again."""


def check_stage(name: str, stage: ModelProto, network: Callable[[Tensor], tuple[Tensor, ...]], images: Float32) -> bool:
    """Refuse a stage that differs from its network by more than rounding, or answers an image by its neighbours.

    A CPU computes a stage of half precision in float32 between roundings, and overflows nowhere. Such a stage is
    therefore also evaluated as a GPU does, each value rounded to float16, by the twin; one of 8 bits, too, which
    engines compute in integers.

    Args:
        name: What messages call the stage.
        stage: Input `image`, outputs in the order of the network's.
        network: What was exported: images -> the outputs, on the CPU, in float32.
        images: A few images, float32 [N, C, H, W] in [0, 1]; eight are answered in batches of `BATCHES` as well.

    Returns:
        Whether every image got the same bits in those batches.

    Raises:
        RecipeError: If an output differs, or is not a finite number.
    """
    outputs = [output.name for output in stage.graph.output]
    engine = OnnxRuntimeEngine(stage.SerializeToString(), device="cpu")
    x = torch.from_numpy(np.ascontiguousarray(images))
    with torch.no_grad(), one_thread():
        expected = [value.numpy() for value in network(x.clone())]  # it may write over what it is given
        rounded = None if precision_of(stage) == "float32" else _rounded(stage, x)
    for output, wanted in zip(outputs, expected, strict=True):
        if not np.isfinite(wanted).all():
            raise RecipeError(
                f"stage {name}: the network itself gives {output} that is not finite on {len(x)} fitting images; its "
                "training diverged, or a setting is too large: lower the learning rate, or purifier.rho and "
                "purifier.step_size, and run it again"
            )
    if rounded is not None:
        _compare(name, stage, outputs, rounded, expected, images)
    together = engine.run({"image": images}, outputs)
    _compare(name, stage, outputs, together, expected, images)
    return _same_in_batches(name, stage, engine, outputs, together, images)


def _rounded(stage: ModelProto, images: Tensor) -> list[np.ndarray] | None:
    """Outputs of a stage that rounds more than float32 does, by the twin; None where the twin does not compute it."""
    try:
        return [value.numpy() for value in torch_stage(stage)(images)]
    except UndifferentiableError:
        return None


def _same_in_batches(
    name: str,
    stage: ModelProto,
    engine: OnnxRuntimeEngine,
    outputs: list[str],
    together: list[np.ndarray],
    images: Float32,
) -> bool:
    """Whether images have the same bits in smaller batches; refused if they differ by more than rounding."""
    parts = np.split(images, np.cumsum(BATCHES))
    answers = [engine.run({"image": part}, outputs) for part in parts if len(part)]
    same = True
    for output, whole, *pieces in zip(outputs, together, *answers, strict=True):
        apart = np.concatenate(pieces)
        difference = float(np.abs(apart.astype(np.float64) - whole).max(initial=0))
        allowed = _allowed(stage, output, whole, images)
        if not difference <= allowed:
            raise RecipeError(
                f"stage {name}: {output} of an image differs by {difference:.3g} in another batch, expected at most "
                f"{allowed:.3g}; a verdict may depend on one image only: leave out what reads the batch"
            )
        same &= difference == 0
    return same


def _compare(
    name: str,
    stage: ModelProto,
    outputs: list[str],
    found: list[np.ndarray],
    expected: list[np.ndarray],
    images: Float32,
) -> None:
    precision = precision_of(stage)
    for output, values, wanted in zip(outputs, found, expected, strict=True):
        if not np.isfinite(values).all():
            raise RecipeError(
                f"stage {name}: {output} is not finite on {len(images)} fitting images; "
                + (
                    "an activation exceeds 65504, where float16 ends: keep export.precision at 'float32'"
                    if precision == "float16"
                    else "the network's is; this is a fault of the export, please report it with the network"
                )
            )
        allowed = _allowed(stage, output, wanted, images)
        difference = float(np.abs(values.astype(np.float64) - wanted).max(initial=0))
        if difference > allowed:
            raise RecipeError(
                f"stage {name}: {output} differs from the network's by {difference:.3g} on {len(images)} fitting "
                f"images, expected at most {allowed:.3g}; "
                + (
                    f"{precision} is too coarse for it: keep export.precision at 'float32'"
                    if precision != "float32"
                    else "a network whose forward method keeps a state or takes random numbers cannot be exported, "
                    "any other is a fault of the export: please report it with the network"
                )
            )


def _allowed(stage: ModelProto, output: str, expected: np.ndarray, images: Float32) -> float:
    """Largest difference of an output that rounding explains."""
    convolutions = sum(node.op_type in CONVOLUTIONS for node in stage.graph.node)
    rounding = MARGIN * ROUNDING[precision_of(stage)] * math.sqrt(3 * convolutions)
    if output == "purified":
        return max(PIXEL, rounding * float(np.abs(expected - images).max(initial=0)))
    return max(RELATIVE, rounding) * float(np.abs(expected).max(initial=0))
