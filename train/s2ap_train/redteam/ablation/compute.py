"""Floating-point operations of a file's stages, and of what a chain of them asks on clean images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import SequentialTest, StageAnswers, accepted_raw, run_sequential_test
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage, member_scope
from s2ap_defend.types import Int64
from s2ap_train.twin import torch_stage

__all__ = ["StageFlops", "clean_flops", "file_flops", "stage_flops"]


@dataclass(frozen=True)
class StageFlops:
    """Floating-point operations of one image in every stage, a multiply-add counted as 2.

    Convolutions and matrix products only; zeros in weights are counted like other numbers.

    Attributes:
        purifier: 0 where there is none.
        classifier: Of the classifier.
        members: Of each member [n], in the order in which they are asked.
    """

    purifier: int
    classifier: int
    members: Int64


def stage_flops(stage: ModelProto, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one image in one stage.

    Raises:
        ModelFileError: If the stage holds an operator that the twin does not know.
    """
    return _counted(torch_stage(stage), image_shape)


def file_flops(file: ModelFile) -> StageFlops:
    """Floating-point operations of every stage of a file.

    Raises:
        ModelFileError: As `stage_flops`.
    """
    manifest = file.manifest
    scopes = [PURIFIER, CLASSIFIER, *(member_scope(i) for i in range(len(manifest.members)))]
    purifier, classifier, *members = (stage_flops(cut_stage(file.proto, one), manifest.input.shape) for one in scopes)
    return StageFlops(purifier, classifier, np.array(members, dtype=np.int64))


def clean_flops(flops: StageFlops, test: SequentialTest, said: StageAnswers) -> float:
    """Floating-point operations of one image, the mean over images: members in whole waves.

    Args:
        flops: Of the stages.
        test: The test that asks them.
        said: What they say of the images. Where only what is not accepted in the opening is purified, the classifier is
            asked again behind the purifier; members that see the purified image are asked there alone.
    """
    ends = np.cumsum(test.waves)
    asked = ends[np.searchsorted(ends, run_sequential_test(test, said).members_used)]
    members = np.concatenate([[0], flops.members.cumsum()])[asked]
    behind = flops.purifier if said.on_raw is None else ~accepted_raw(test, said) * (flops.purifier + flops.classifier)
    return float(np.mean(flops.classifier + behind + members))


def _counted(function: Callable[[Tensor], object], image_shape: tuple[int, int, int]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        function(torch.full((1, *image_shape), 0.5))
    return int(counter.get_total_flops())
