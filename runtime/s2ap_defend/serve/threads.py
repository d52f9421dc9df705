"""How many CPU threads a server uses where nobody said: one or all, whichever is faster for this file on this machine.

Small networks are slower with more threads, because handing work over costs more than it saves; large ones are not.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping

import numpy as np

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.engines.cores import usable_cores
from s2ap_defend.engines.onnxruntime import chosen_device
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.types import Float32

__all__ = ["fastest", "load_fastest"]

logger = logging.getLogger(__name__)

ROUNDS = 5
ENOUGH_S = 2.0  # no further round begins after that
WORTH = 0.95  # more threads must take less than this share of the time, for they also cost others


def load_fastest(config: ServerConfig) -> DefendedClassifier:
    """Load a server's classifier; without `threads` with as many as are faster for one image and for a full batch.

    OMP_NUM_THREADS is somebody's word too. Both are in memory while they are compared.

    Raises:
        ModelFileError: If the file is missing, broken, changed, undefended or of another version.
        EngineError: If the device cannot be used, or the model fails.
    """

    def load(threads: int | None) -> DefendedClassifier:
        return DefendedClassifier.load(
            config.model,
            device=config.device,
            threads=threads,
            executor=config.executor,
            cache=config.cache,
            engines=config.engines,
        )

    cores = usable_cores()
    said = config.threads is not None or bool(os.environ.get("OMP_NUM_THREADS"))
    if said or cores == 1 or chosen_device(config.device) != "cpu":
        return load(config.threads)
    loaded = {threads: load(threads) for threads in (1, cores)}
    shape = loaded[1].input_shape
    images = np.random.default_rng(0).random((config.max_batch_rows, *shape), dtype=np.float32)
    chosen = fastest(loaded, [images[:1], images])
    logger.info("threads: %d of %d cores, which was measured to be faster; --threads sets it", chosen, cores)
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
