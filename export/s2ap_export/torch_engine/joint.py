"""The stages of a step as one torch function, members one by one or those of equal structure as one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor

from s2ap_defend.executors.groups import Group
from s2ap_defend.executors.stages import tensorrt_stage
from s2ap_defend.external_data import fill
from s2ap_defend.stages import PURIFIER
from s2ap_train.onnx_graphs import TorchStage, torch_stage

__all__ = ["Members", "Way", "joint_ways"]

_INTEGERS = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
Members = Literal["apart", "batched", "measured"]
"""Members run one by one; those of equal structure as one batched network; or what is faster for a size of batch."""
Way = Callable[[Tensor], tuple[Tensor, ...]]
"""Images [n, C, H, W] -> the outputs of all stages, in their order."""


def joint_ways(
    model: ModelProto, group: Group, device: torch.device, members: Members, folder: Path | None = None
) -> tuple[tuple[str, ...], list[Way]]:
    """Names of the outputs of a group, `SCOPE/NAME`, and the ways to compute them, the first one with members apart.

    Args:
        model: A defended model.
        group: What is asked about the same images.
        device: Where the weights live.
        members: Which ways there are; one, or both where they are to be measured and differ.
        folder: Where its external data lies; None: all weights are in memory.

    Raises:
        ModelFileError: If a stage cannot be cut out, or has an operator that the twin does not know.
    """
    cut = {scope: tensorrt_stage(model, scope) for scope in group.scopes}
    if folder is not None:
        for stage in cut.values():
            fill(stage, folder)
    stages = {scope: torch_stage(stage, device) for scope, stage in cut.items()}
    names = tuple(f"{scope}/{output.name}" for scope, stage in cut.items() for output in stage.graph.output)
    apart = _joint(group, [((scope,), stage) for scope, stage in stages.items()])
    alike: dict[tuple[str, bool], list[str]] = {}
    for scope, stage in cut.items():
        alike.setdefault((_structure(stage), scope in group.behind), []).append(scope)
    if members == "apart" or all(len(scopes) == 1 for scopes in alike.values()):
        return names, [apart]
    together = [(tuple(scopes), _batched([stages[scope] for scope in scopes])) for scopes in alike.values()]
    batched = _joint(group, together)
    return names, [batched] if members == "batched" else [apart, batched]


def _joint(group: Group, asked: Sequence[tuple[tuple[str, ...], Way]]) -> Way:
    """All stages of a group as one function; each of `asked` gives the outputs of its scopes, one after another."""
    scopes = group.scopes

    def run(images: Tensor) -> tuple[Tensor, ...]:
        said: dict[str, tuple[Tensor, ...]] = {}
        for of, way in asked:
            outputs = way(said[PURIFIER][0] if of[0] in group.behind else images)
            each = len(outputs) // len(of)
            said |= {scope: outputs[i * each : (i + 1) * each] for i, scope in enumerate(of)}
        return tuple(output for scope in scopes for output in said[scope])

    return run


def _batched(stages: Sequence[TorchStage]) -> Way:
    """Stages of equal structure as one, whose convolutions are grouped ones; their outputs one stage after another."""
    first = stages[0]
    if len(stages) == 1:
        return first
    constants = [stage.constants for stage in stages]
    own = [i for i, value in enumerate(constants[0]) if any(_differ(value, other[i]) for other in constants[1:])]
    stacked = [torch.stack([values[i] for values in constants]) for i in own]  # type: ignore[misc]

    def one(images: Tensor, *replaced: Tensor) -> tuple[Tensor, ...]:
        values = list(constants[0])
        for place, value in zip(own, replaced, strict=True):
            values[place] = value
        return first.evaluate(values, images)

    if not own:  # the same network several times
        return lambda images: first(images) * len(stages)
    every = torch.vmap(one, in_dims=(None, *[0] * len(own)))

    def run(images: Tensor) -> tuple[Tensor, ...]:
        outputs = every(images, *stacked)
        return tuple(output[i] for i in range(len(stages)) for output in outputs)

    return run


def _differ(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and not torch.equal(one, other)


def _structure(stage: ModelProto) -> str:
    """A text that stages have in common where they differ in floating weights alone."""
    graph = stage.graph
    number = {"": -1, graph.input[0].name: 0}
    lines = []
    for tensor in graph.initializer:
        number[tensor.name] = len(number)
        integers = numpy_helper.to_array(tensor).tobytes().hex() if tensor.data_type in _INTEGERS else ""
        lines.append(f"{tensor.data_type} {list(tensor.dims)} {integers}")
    for node in graph.node:
        lines.append(f"{node.op_type} {[number.get(name, -2) for name in node.input]} {_attributes(node)}")
        number |= {name: len(number) + i for i, name in enumerate(node.output)}
    return "\n".join([*lines, str([number.get(output.name) for output in graph.output])])


def _attributes(node: NodeProto) -> list[str]:
    return sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in node.attribute)
