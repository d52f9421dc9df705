"""What the engine reaches at best on this machine: a large matrix product, and a pass over memory."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from s2ap_defend.bench.rounds import Variant
from s2ap_defend.bench.work import Work
from s2ap_defend.engines import Device
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.types import Float64

SIDE = 256
"""Rows and columns of the matrices."""
NUMBERS = 8 * 2**20
"""float32 numbers of the pass over memory, 32 MiB: more than a core's share of a cache."""
EXTRA = 4
"""Nodes that the longer graph has more than the shorter; start and transfers are equal and cancel out."""
TRIES = 3
"""Calls of each in a round."""


@dataclass(frozen=True)
class Ceilings:
    """The best of all rounds.

    Attributes:
        flops_per_s: Of matrix products of SIDE x SIDE in float32.
        bytes_per_s: Read and written by a node that negates NUMBERS numbers.
    """

    flops_per_s: float
    bytes_per_s: float

    def floor_s(self, work: Work, images: int) -> float:
        """Seconds that a stage needs at least for a batch: its products, or its bytes, whichever takes longer."""
        if not images:
            return 0.0
        read = work.weight_bytes + images * work.image_bytes
        return max(images * work.flops / self.flops_per_s, read / self.bytes_per_s)


def ceiling_variants(device: Device, threads: int | None) -> dict[str, Variant]:
    """What is timed for `ceilings`, by name."""
    found: dict[str, Variant] = {}
    for name, model, shape in (("product", _products, (SIDE, SIDE)), ("pass", _passes, (NUMBERS,))):
        values = {"x": np.full(shape, 0.5, dtype=np.float32)}
        for count in (1, 1 + EXTRA):
            engine = OnnxRuntimeEngine(model(count).SerializeToString(), device=device, threads=threads)
            found[f"{name} x {count}"] = [partial(engine.run, values, ["y"])] * TRIES
    return found


def ceilings(seconds: dict[str, Float64]) -> Ceilings:
    """Ceilings from the times of `ceiling_variants`, [rounds, TRIES] each."""

    def one(name: str) -> float:
        short, long = (float(seconds[f"{name} x {count}"].min()) for count in (1, 1 + EXTRA))
        return max(long - short, 1e-9) / EXTRA

    return Ceilings(2 * SIDE**3 / one("product"), 2 * 4 * NUMBERS / one("pass"))


def _products(count: int) -> ModelProto:
    weight = np.random.default_rng(0).normal(0, SIDE**-0.5, (SIDE, SIDE)).astype(np.float32)
    nodes = [helper.make_node("MatMul", [_name(i), "w"], [_name(i + 1)]) for i in range(count)]
    return _model(nodes, [SIDE, SIDE], [numpy_helper.from_array(weight, "w")])


def _passes(count: int) -> ModelProto:
    return _model([helper.make_node("Neg", [_name(i)], [_name(i + 1)]) for i in range(count)], [NUMBERS], [])


def _model(nodes: list[NodeProto], shape: list[int], weights: list[TensorProto]) -> ModelProto:
    """The nodes in a row, and the largest number of the last, so that little is transferred."""
    nodes = [*nodes, helper.make_node("ReduceMax", [_name(len(nodes))], ["y"], keepdims=0)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", shape), ("y", [])))
    graph = helper.make_graph(nodes, "ceiling", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _name(index: int) -> str:
    return f"v{index}" if index else "x"
