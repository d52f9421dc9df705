"""Stages and their runs on ONNX Runtime, which several tests share."""

import numpy as np
import onnxruntime as ort
from onnx import ModelProto
from torch import Tensor

from s2ap_train.purifier import Purification, hadamard_bank

DIGITS = (1, 8, 8)


def images(count: int, shape: tuple[int, int, int] = DIGITS) -> np.ndarray:
    """Uniform noise [count, C, H, W], float32."""
    return np.random.default_rng(0).random((count, *shape), dtype=np.float32)


def bank(config: Purification, shape: tuple[int, int, int] = DIGITS) -> Tensor:
    """The noise directions of a purifier."""
    return hadamard_bank(config.bank_size, shape, config.bank_seed)


def session(model: ModelProto, threads: int = 1) -> ort.InferenceSession:
    """ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """All outputs of a stage."""
    return session(model).run(None, {"image": x})


def operators(model: ModelProto) -> set[str]:
    """Kinds of its nodes."""
    return {node.op_type for node in model.graph.node}


def assert_same_bits_in_every_batch(model: ModelProto, x: np.ndarray, threads: int = 1) -> list[np.ndarray]:
    """Run images together, in batches of 1 and 7 and in another order; returns what comes out."""
    runner = session(model, threads)
    together: list[np.ndarray] = runner.run(None, {"image": x})
    for size in (1, 7):
        parts = [runner.run(None, {"image": x[i : i + size]}) for i in range(0, len(x), size)]
        for i, values in enumerate(together):
            np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), values)
    order = np.random.default_rng(3).permutation(len(x))
    for values, permuted in zip(together, runner.run(None, {"image": x[order]}), strict=True):
        np.testing.assert_array_equal(permuted, values[order])
    return together
