"""How many CPU threads a server uses where nobody said: one or all, whichever is faster for this file on this machine.

Small networks are slower with more threads, because handing work over costs more than it saves; large ones are not.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.engines.cores import usable_cores
from s2ap_defend.engines.onnxruntime import chosen_device
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.serve.loading import load
from s2ap_defend.types import Float32

__all__ = ["fastest", "load_fastest", "load_models"]

logger = logging.getLogger(__name__)

ROUNDS = 5
ENOUGH_S = 2.0  # no further round begins after that
WORTH = 0.95  # more threads must take less than this share of the time, for they also cost others


def load_models(config: ServerConfig) -> dict[str, DefendedClassifier]:
    """Load the models of a server; the cores are divided among them, where nobody says how many threads each has.

    Raises:
        ModelFileError: If a file is missing, broken, changed, undefended or of another version.
        EngineError: If the device cannot be used, or a model fails.
    """
    models = config.models
    cores = max(1, usable_cores() // len(models))
    if len(models) > 1 and config.threads is None:
        logger.info("%d models share the cores: up to %d threads each; --threads sets it", len(models), cores)
    return {name: load_fastest(path, config, cores) for name, path in models.items()}


def load_fastest(path: Path, config: ServerConfig, cores: int) -> DefendedClassifier:
    """Load a model; without `threads` with 1 or `cores`, whichever is faster for one image and for a full batch.

    OMP_NUM_THREADS is somebody's word too. Both are in memory while they are compared.

    Raises:
        ModelFileError: If the file is missing, broken, changed, undefended or of another version.
        EngineError: If the device cannot be used, or the model fails.
    """
    said = config.threads is not None or bool(os.environ.get("OMP_NUM_THREADS"))
    if said or chosen_device(config.device) != "cpu":
        return load(path, config, config.threads)
    if cores == 1:
        return load(path, config, 1)
    loaded = {threads: load(path, config, threads) for threads in (1, cores)}
    shape = loaded[1].input_shape
    images = np.random.default_rng(0).random((config.max_batch_rows, *shape), dtype=np.float32)
    chosen = fastest(loaded, [images[:1], images])
    logger.info("%s: %d of %d threads, which was measured to be faster; --threads sets it", path.name, chosen, cores)
    return loaded[chosen]


def fastest(
    candidates: Mapping[int, Callable[[Float32], object]],
    batches: list[Float32],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The number of threads whose candidate is fastest over batches, all of the same weight.

    They take turns, after one round to warm up, and count with their least times.

    Args:
        candidates: What runs a batch, by its threads, fewest first.
        batches: Images [N, C, H, W] each.
        clock: Seconds.
    """
    least = {threads: [math.inf] * len(batches) for threads in candidates}
    started = clock()
    for number in range(ROUNDS + 1):
        for threads, run in candidates.items():
            for i, images in enumerate(batches):
                began = clock()
                run(images)
                if number:
                    least[threads][i] = min(least[threads][i], clock() - began)
        if number and clock() - started > ENOUGH_S:
            break
    chosen, lowest = 0, math.inf
    for threads, seconds in least.items():
        cost = math.prod(seconds)
        if cost < WORTH ** len(batches) * lowest:
            chosen, lowest = threads, cost
    return chosen
