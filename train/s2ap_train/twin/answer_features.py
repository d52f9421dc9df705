"""The hidden features of the networks that give a file's answer: what a planted readout of it can read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.decision_record import Sees
from s2ap_defend.model_file import ModelFile
from s2ap_defend.stages import cut_stage, member_scope
from s2ap_train.onnx_graphs import TorchStage, torch_stage
from s2ap_train.onnx_graphs.hidden import hidden_stage
from s2ap_train.purifier.gradient_path import GradientPath
from s2ap_train.twin.pipeline import Twin

__all__ = ["Features", "answer_features"]

Features = Callable[[Tensor, GradientPath], Tensor]
"""Images [N, C, H, W] and the gradient's path through the purifier -> hidden features [N, D]."""


def answer_features(file: ModelFile, twin: Twin) -> tuple[Features, ...]:
    """Features of the networks that answer, side by side [N, D]: of those behind the purifier, of those past it.

    Each takes images [N, C, H, W] and the path of the gradient. The classifier answers unless the answer is 'robust',
    the jurors unless it is 'accurate'; a classifier without gradients of its own is left out. Each sees what it sees in
    the file, so that gradients reach it on the way that an attack on the answer takes. The two ways are kept apart:
    where one hides the gradient the other would not show it.

    Args:
        file: The opened file.
        twin: Of the file.

    Raises:
        ModelFileError: If a stage cannot be differentiated or has no layer with weights.
    """
    members, answer = file.manifest.members, file.manifest.decision.answer
    jurors = np.flatnonzero([member.vote_weight for member in members]).tolist() if answer != "accurate" else []
    stages = [torch_stage(hidden_stage(cut_stage(file.proto, member_scope(i))), twin.device) for i in jurors]
    networks: list[tuple[Callable[[Tensor], Tensor], Sees]] = [(twin.features, "purified")] * (
        answer != "robust" and twin.has_features
    )
    networks += [(partial(_features, stage), members[i].sees) for i, stage in zip(jurors, stages, strict=True)]
    off = file.manifest.purifier.off
    behind = [network for network, sees in networks if sees == "purified" and not off]
    past = [network for network, sees in networks if sees == "raw" or off]

    def purified(images: Tensor, path: GradientPath) -> Tensor:
        seen = twin.purify(images, path)
        return torch.cat([network(seen) for network in behind], dim=1)

    def raw(images: Tensor, path: GradientPath) -> Tensor:  # noqa: ARG001
        return torch.cat([network(images) for network in past], dim=1)

    return tuple(way for way, there in ((purified, behind), (raw, past)) if there)


def _features(stage: TorchStage, images: Tensor) -> Tensor:
    return stage(images)[0].flatten(1)
