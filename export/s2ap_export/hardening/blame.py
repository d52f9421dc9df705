"""Which layer or node of a network reads other images of the batch, or makes the number of images a number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, helper
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_train.models.onnx_network import OnnxNetwork

__all__ = ["layer_at_fault", "node_at_fault"]

_ALIKE = 1e-4
"""Largest difference of an image's values in another batch that rounding explains, of the largest value."""


def layer_at_fault(module: nn.Module, images: Tensor) -> str:
    """The first layer whose answer to an image depends on the others, or that fixes how many there are.

    Args:
        module: In evaluation mode, on the CPU, float32.
        images: Some, [N, C, H, W], N > 1.

    Returns:
        'layer NAME (CLASS): ' for a message; empty where no layer does so, but the network around them may.
    """
    found = ""
    with suppress(Exception):  # a forward method may do anything; what is wrong with it was said already
        found = _mixing(module, images) or _counting(module, images)
    if not found:
        return ""
    return f"layer {found} ({type(module.get_submodule(found)).__name__}): "


def node_at_fault(network: OnnxNetwork, images: Tensor) -> str:
    """The first node of an ONNX file whose answer to an image depends on the others.

    Args:
        network: The file.
        images: Some, [N, C, H, W], N > 1.

    Returns:
        'node NAME (OPERATOR): ' for a message; empty where no node does so.
    """
    shown = ModelProto()
    shown.CopyFrom(network.proto)
    made = {name: node for node in shown.graph.node for name in node.output if name}
    del shown.graph.output[:]
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    with suppress(Exception), torch.no_grad():  # what is wrong with it was said already
        engine, image = OnnxRuntimeEngine(shown.SerializeToString(), device="cpu"), shown.graph.input[0].name
        x = network.normalisation(images.float())
        feed = (x if network.layout == "NCHW" else x.permute(0, 2, 3, 1)).contiguous().numpy()
        together, alone = (engine.run({image: some}, list(made)) for some in (feed, feed[:1]))
        for (name, node), whole, single in zip(made.items(), together, alone, strict=True):
            first = whole[:1] if whole.ndim and (len(whole), len(single)) == (len(feed), 1) else whole  # or one for all
            if first.shape == single.shape:
                apart = np.abs(first.astype(np.float64) - single).max(initial=0)
                if not apart <= _ALIKE * np.abs(whole.astype(np.float64)).max(initial=0):
                    return f"node {node.name or name} ({node.op_type}): "
    return ""


def _mixing(module: nn.Module, images: Tensor) -> str:
    """The first layer, in the order in which they end, that answers an image otherwise alone."""
    together, alone = _answers(module, images), _answers(module, images[:1])
    for (name, whole), (other, single) in zip(together, alone, strict=False):
        if name != other or len(whole) != len(images) or len(single) != 1:
            continue
        if not float((whole[:1] - single).abs().max()) <= _ALIKE * float(whole.abs().max()):
            return name
    return ""


@torch.no_grad()
def _answers(module: nn.Module, images: Tensor) -> list[tuple[str, Tensor]]:
    """What every layer answers, in the order in which they end."""
    answers: list[tuple[str, Tensor]] = []

    def watch(name: str, answer: object) -> None:
        if isinstance(answer, Tensor) and answer.dim():
            answers.append((name, answer.clone()))

    _run(module, images.clone(), watch)
    return answers


def _counting(module: nn.Module, images: Tensor) -> str:
    """The first layer behind whose pass the number of images is a number."""
    fixed: list[str] = []
    sizes: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(
        [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * (images.dim() - 1)]
    )
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    fake = mode.from_tensor(images, symbolic_context=sizes)

    def watch(name: str, _: object) -> None:
        if isinstance(fake.shape[0], int) or fake.shape[0].node.maybe_as_int() is not None:
            fixed.append(name)

    with mode, torch.no_grad():
        _run(module, fake, watch)
    return fixed[0] if fixed else ""


def _run(module: nn.Module, images: Tensor, watch: Callable[[str, object], None]) -> None:
    """One pass of a copy, each of whose layers is watched when it ends."""
    copied = copy.deepcopy(module)
    for name, layer in copied.named_modules():
        if name:
            layer.register_forward_hook(lambda _layer, _read, answer, name=name: watch(name, answer))
    copied(images)
