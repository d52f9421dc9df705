"""A stage of a file as a function of torch tensors, evaluated step by step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_train.onnx_graphs.segments import Step, run_steps, segments_of

__all__ = ["TorchStage"]


class TorchStage:
    """Evaluates one stage: images [N, C, H, W] -> a tuple of the stage's outputs, in their order.

    Attributes:
        dtype: Floating type that the stage computes in.
    """

    def __init__(
        self, slots: list[Tensor | None], image: int, steps: list[Step], outputs: list[int], *, segments: int = 1
    ) -> None:
        self._slots = slots
        self._image = image
        self._steps = steps
        self._outputs = outputs
        self._segments = segments_of(steps, image, segments) if segments > 1 else ()
        self.dtype = next((s.dtype for s in slots if s is not None and s.is_floating_point()), torch.float32)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs for images; gradients flow back to them, zeros where an output does not depend on them smoothly."""
        differentiated = images.requires_grad and torch.is_grad_enabled()
        if self._segments and differentiated:
            values: list[Any] = list(self._slots)
            values[self._image] = images
            for segment in self._segments:
                segment(self._slots, values)
            results = tuple(values[slot] for slot in self._outputs)
        else:
            results = self.evaluate(self._slots, images)
        return tuple(_attached(result, images) for result in results) if differentiated else results

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        """What does not depend on the image, by place; None where something does, or nothing is."""
        return tuple(self._slots)

    def evaluate(self, constants: Sequence[Tensor | None], images: Tensor) -> tuple[Tensor, ...]:
        """Outputs for images where other constants are in the place of its own."""
        values: list[Any] = list(constants)
        values[self._image] = images
        run_steps(self._steps, values)
        return tuple(values[slot] for slot in self._outputs)

    def as_parameters(self) -> list[nn.Parameter]:
        """The floating constants, from now on as parameters without gradients: to change one is to change the stage."""
        found = []
        for place, value in enumerate(self._slots):
            if value is not None and value.is_floating_point():
                self._slots[place] = parameter = nn.Parameter(value, requires_grad=False)
                found.append(parameter)
        return found


class _ZeroGradient(torch.autograd.Function):
    """A value that does not depend on an image, as one whose derivative with respect to the image is exactly zero."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, images: Tensor) -> Tensor:  # noqa: ANN401
        ctx.images = images
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, Tensor]:  # noqa: ANN401
        return None, torch.zeros_like(ctx.images)


def _attached(result: Tensor, images: Tensor) -> Tensor:
    """The result, with a gradient also where nothing differentiable leads from the images to it: zero."""
    if result.requires_grad or not result.is_floating_point():
        return result
    attached: Tensor = _ZeroGradient.apply(result, images)
    return attached
