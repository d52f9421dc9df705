"""An engine whose images and answers lie in buffers on its device that are used again, a set for each size of batch.

On CUDA each size is captured in a CUDA graph at its first run, and replayed from then on: one launch instead of one for
each operator. Sizes are few, so that buffers and graphs are; a batch is filled up to the next one.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from s2ap_defend.engines import Array, Device
from s2ap_defend.engines.onnxruntime import BoundBatch, OnnxRuntimeEngine
from s2ap_defend.errors import ModelFileError

__all__ = ["SIZES", "STACKED", "BoundEngine"]

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Sizes of batches: filling up costs at most as much again."""
STACKED = "answers"
"""Output of a graph that holds several answers as one array [answers, n, K]."""

_ONE_AT_A_TIME = Lock()
"""While a graph is captured nobody else in the process may allocate memory of the device."""


class BoundEngine:
    """An engine of a graph whose only input is `image` [n, C, H, W], rows independent of each other.

    Args:
        model: The serialised graph.
        folder: Of its external data; None: it has none.
        device: 'cpu' or 'cuda'.
        threads: Of the CPU, inside one operator; None: as many as this process has cores.
        stacked: Names of what its output `STACKED` holds, in order; none: it has no such output.
        sizes: Of batches, ascending.
        ahead: Whether every size is run once now, so that no later run has to capture it.

    Attributes:
        captures: Whether runs are captured in CUDA graphs; not on the CPU, nor where ONNX Runtime runs a part of the
            graph on the CPU.
    """

    def __init__(
        self,
        model: bytes,
        *,
        folder: Path | None = None,
        device: Device,
        threads: int | None = 1,
        stacked: Sequence[str] = (),
        sizes: Sequence[int] = SIZES,
        ahead: bool = False,
    ) -> None:
        self.captures = device == "cuda"
        start = partial(OnnxRuntimeEngine, model, folder=folder, device=device, threads=threads)
        with _ONE_AT_A_TIME if self.captures else nullcontext():
            try:
                options = {"enable_cuda_graph": "1"} if self.captures else None
                self._engine = start(provider_options=options)
            except ModelFileError as error:
                if not self.captures or "graph capture" not in str(error):
                    raise
                self.captures = False
                self._engine = start()
        self.provider: str = self._engine.provider
        self._stacked, self._sizes = tuple(stacked), tuple(sizes)
        self._bound: dict[int, BoundBatch] = {}
        with _ONE_AT_A_TIME:
            for size in self._sizes if ahead else ():
                self._batch(size).run(())

    @property
    def bound(self) -> tuple[int, ...]:
        """Sizes that have been run."""
        return tuple(self._bound)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[np.ndarray]:
        """Evaluate the graph for at most `sizes[-1]` images, which are copied into the buffers.

        Raises:
            EngineError: If the engine fails.
        """
        images = feeds["image"]
        size = next(size for size in self._sizes if size >= len(images))
        with _ONE_AT_A_TIME:
            said = self._batch(size).run(images)
        for name, values in zip(self._stacked, said.get(STACKED, ()), strict=True):
            said[name] = values
        return [said[name][: len(images)] for name in outputs]

    def _batch(self, size: int) -> BoundBatch:
        if size not in self._bound:
            self._bound[size] = self._engine.bind(size, number=self._sizes.index(size))
        return self._bound[size]
