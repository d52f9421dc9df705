"""Floating-point operations of a file's stages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from s2ap_defend.model_file import ModelFile
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage, member_scope
from s2ap_train.calibration.flops import StageFlops
from s2ap_train.models.cost import graph_flops
from s2ap_train.onnx_graphs import UndifferentiableError, torch_stage

__all__ = ["file_flops", "stage_flops"]


def stage_flops(stage: ModelProto, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one image in one stage; counted from its graph where torch does not compute it.

    Raises:
        ModelFileError: If the stage has more than one input.
    """
    try:
        return _counted(torch_stage(stage), image_shape)
    except UndifferentiableError:
        return graph_flops(stage)


def file_flops(file: ModelFile) -> StageFlops:
    """Floating-point operations of every stage of a file.

    Raises:
        ModelFileError: As `stage_flops`.
    """
    manifest = file.manifest
    scopes = [PURIFIER, CLASSIFIER, *(member_scope(i) for i in range(len(manifest.members)))]
    purifier, classifier, *members = (stage_flops(cut_stage(file.proto, one), manifest.input.shape) for one in scopes)
    return StageFlops(purifier, classifier, np.array(members, dtype=np.int64))


def _counted(function: Callable[[Tensor], object], image_shape: tuple[int, int, int]) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # imports a compiler for GPUs

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        function(torch.full((1, *image_shape), 0.5))
    return int(counter.get_total_flops())
