"""An ONNX graph that ONNX Runtime computes, where an operator of it has no gradient here.

The values are those of the graph, to the last bit. Who differentiates it is given the gradient of another network at
the same images, which differs as little as the two networks do (the backward pass of Athalye et al. 2018, arXiv
1802.00420, section 4.1.2, with the surrogate of Papernot et al. 2017, arXiv 1602.02697): an attack by transfer that
tries every step of its way on the graph itself.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine

__all__ = ["ServedStage", "with_gradient_of"]


class ServedStage:
    """Evaluates one stage on ONNX Runtime: images [N, C, H, W], float32 -> a tuple of its outputs, without gradients.

    It never changes, so copies share it; it travels to other processes as a pickle and starts its engine there.

    Args:
        stage: ONNX model with one input that is not an initialiser.

    Raises:
        ModelFileError: If ONNX Runtime refuses the stage.
    """

    def __init__(self, stage: ModelProto) -> None:
        weights = {one.name for one in stage.graph.initializer}
        (self._input,) = (one.name for one in stage.graph.input if one.name not in weights)
        self._outputs = [one.name for one in stage.graph.output]
        self._stage = stage.SerializeToString()
        self._engine: OnnxRuntimeEngine | None = self._started()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs for images, on their device.

        Raises:
            EngineError: If ONNX Runtime fails on them.
        """
        if self._engine is None:
            self._engine = self._started()
        pixels = np.ascontiguousarray(images.detach().cpu().numpy())
        found = self._engine.run({self._input: pixels}, self._outputs)
        return tuple(torch.from_numpy(values).to(images.device) for values in found)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """All but the engine."""
        return {**self.__dict__, "_engine": None}

    def _started(self) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(self._stage, device="cpu", threads=1)


def with_gradient_of(values: Tensor, substitute: Tensor) -> Tensor:
    """Values as they are, with the gradient of a substitute of the same shape, which is finite."""
    return values + (substitute - substitute.detach())
