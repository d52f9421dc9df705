"""Checkpointed evaluation: the backward pass keeps what lies between segments and computes the rest again.

A purifier of K steps holds K times the activations of its score model, twice where it looks ahead, for every bank
direction. Between two evaluations of the score model little more than the image is alive, so that is where segments end
(Chen et al. 2016, arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from s2ap_train.onnx_graphs.rearranging import Function

__all__ = ["Segment", "Step", "run_steps", "segments_of"]


@dataclass(frozen=True)
class Step:
    """One operator.

    Attributes:
        function: Of the values of `inputs`.
        inputs: Slots; slot 0 is always None, the absent optional input.
        outputs: Slots.
        dead: Slots whose values nobody needs any more.
    """

    function: Function
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...] = ()


@dataclass(frozen=True)
class Segment:
    """Neighbouring steps with the values that they take from before and leave for after."""

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __call__(self, constants: Sequence[Tensor | None], values: list[Any]) -> None:
        """Replace the inputs among `values` by the outputs, keeping for the backward pass the inputs alone."""

        def outputs_of(*inputs: Any) -> tuple[Any, ...]:  # noqa: ANN401
            inner = list(constants)
            for slot, value in zip(self.inputs, inputs, strict=True):
                inner[slot] = value
            run_steps(self.steps, inner)
            return tuple(inner[slot] for slot in self.outputs)

        results = checkpoint(
            outputs_of, *(values[slot] for slot in self.inputs), use_reentrant=False, preserve_rng_state=False
        )
        for step in self.steps:
            for slot in step.dead:
                values[slot] = None
        for slot, value in zip(self.outputs, results, strict=True):
            values[slot] = value


def run_steps(steps: Sequence[Step], values: list[Any]) -> None:
    """Evaluate operators one after the other; `values` by slot are changed."""
    for step in steps:
        result = step.function(*[values[slot] for slot in step.inputs])
        if len(step.outputs) == 1:
            values[step.outputs[0]] = result
        else:
            for slot, value in zip(step.outputs, result, strict=True):
                values[slot] = value
        for slot in step.dead:
            values[slot] = None


def segments_of(steps: Sequence[Step], image: int, count: int) -> tuple[Segment, ...]:
    """Cut the steps of a stage into so many segments of about one length, where few values are alive.

    Args:
        steps: In their order; the slots of the stage's outputs are never dead.
        image: Slot of the image.
        count: Segments; there may be fewer where there are few steps.
    """
    alive = _alive_after(steps, image)
    cuts = [0, *_cuts([len(slots) for slots in alive[:-1]], count), len(steps)]
    segments = []
    for start, end in pairwise(cuts):
        inside = tuple(steps[start:end])
        read = {slot for step in inside for slot in step.inputs}
        before = alive[start - 1] if start else {image}
        made = {slot for step in inside for slot in step.outputs}
        segments.append(Segment(inside, tuple(sorted(before & read)), tuple(sorted(alive[end - 1] & made))))
    return tuple(segments)


def _alive_after(steps: Sequence[Step], image: int) -> list[set[int]]:
    """Slots that are filled and still needed after each step."""
    alive, after = {image}, []
    for step in steps:
        alive = (alive | {*step.outputs}) - {*step.dead}
        after.append(alive)
    return after


def _cuts(alive: Sequence[int], count: int) -> list[int]:
    """Steps before which segments begin: near each of count - 1 even places, the one that fewest values cross."""
    length = (len(alive) + 1) / count
    cuts: list[int] = []
    for place in (length * number for number in range(1, count)):
        first, last = max(1, round(place - length / 2)), min(len(alive), round(place + length / 2))
        near = [cut for cut in range(first, last + 1) if not cuts or cut > cuts[-1]]
        if near:
            cuts.append(min(near, key=lambda cut: (alive[cut - 1], abs(cut - place))))
    return cuts
