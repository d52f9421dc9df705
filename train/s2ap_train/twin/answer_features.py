"""The hidden features of the networks that give a file's answer: what a planted readout of it can read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.model_file import ModelFile
from s2ap_defend.stages import cut_stage, member_scope
from s2ap_train.purifier.gradient_path import GradientPath
from s2ap_train.twin.hidden import hidden_stage
from s2ap_train.twin.onnx_module import torch_stage
from s2ap_train.twin.pipeline import Twin

__all__ = ["answer_features"]


def answer_features(file: ModelFile, twin: Twin) -> Callable[[Tensor, GradientPath], Tensor]:
    """Images [N, C, H, W] and the path of the gradient -> features of the networks that answer, side by side [N, D].

    The classifier answers unless the answer is 'robust', the jurors unless it is 'accurate'; each sees what it sees in
    the file, so that gradients reach it on the way that an attack on the answer takes.

    Args:
        file: The opened file.
        twin: Of the file.

    Raises:
        ModelFileError: If a stage cannot be differentiated or has no layer with weights.
    """
    members, answer = file.manifest.members, file.manifest.decision.answer
    jurors = np.flatnonzero([member.vote_weight for member in members]).tolist() if answer != "accurate" else []
    stages = [
        (torch_stage(hidden_stage(cut_stage(file.proto, member_scope(i))), twin.device), members[i].sees)
        for i in jurors
    ]
    behind = answer != "robust" or any(sees == "purified" for _, sees in stages)

    def features(images: Tensor, path: GradientPath) -> Tensor:
        purified = twin.purify(images, path) if behind else images
        alone = [] if answer == "robust" else [twin.features(purified)]
        voters = [stage(purified if sees == "purified" else images)[0].flatten(1) for stage, sees in stages]
        return torch.cat([*alone, *voters], dim=1)

    return features
