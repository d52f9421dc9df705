"""An engine on PyTorch; on CUDA every size of batch is a CUDA graph with buffers of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.engines import Array
from s2ap_defend.errors import EngineError, first_line
from s2ap_export.torch_engine.joint import Way

__all__ = ["TorchEngine"]

_WARM_UPS, _RUNS = 2, 3
_ONE_AT_A_TIME = Lock()
"""While a graph is captured nobody else in the process may use the device."""


class TorchEngine:
    """Runs a torch function of images.

    Args:
        ways: Functions that compute the same, images [n, C, H, W] to outputs; of several the fastest is taken, for
            each size of batch, at its first run.
        names: Of the outputs.
        device: Where the function runs.
        dtype: Of convolutions and products of matrices, as torch.autocast has it.
        sizes: Of batches on CUDA, ascending; a batch is filled up to the next one. On the CPU batches stay as they are.

    Attributes:
        chosen: The number of the way that was taken, by size of batch.
        captured: Sizes whose runs are replayed CUDA graphs.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        names: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
        sizes: Sequence[int],
    ) -> None:
        self.provider = f"torch {torch.__version__} on {device.type}, {str(dtype).removeprefix('torch.')}"
        self._ways, self._names, self._device, self._dtype = tuple(ways), tuple(names), device, dtype
        self._sizes = tuple(sizes)
        self._runs: dict[int, Callable[[Array], list[np.ndarray]]] = {}
        self.chosen: dict[int, int] = {}
        self.captured: set[int] = set()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[np.ndarray]:
        """The wanted outputs for images [n, C, H, W], on CUDA at most `sizes[-1]` of them.

        Raises:
            EngineError: If PyTorch fails.
        """
        images = feeds["image"]
        try:
            if self._device.type == "cpu":
                said = self._on_cpu(images)
            else:
                with _ONE_AT_A_TIME, torch.cuda.device(self._device):
                    said = self._on_cuda(images)
        except RuntimeError as error:
            raise EngineError(f"PyTorch failed on {self._device}: {first_line(error)}") from error
        found = dict(zip(self._names, said, strict=True))
        return [found[name] for name in outputs]

    def _on_cpu(self, images: Array) -> list[np.ndarray]:
        x = torch.from_numpy(np.ascontiguousarray(images))
        with torch.inference_mode(), self._precision():
            way = self._fastest(len(images), x)
            return [value.float().numpy() for value in way(x)]

    def _on_cuda(self, images: Array) -> list[np.ndarray]:
        size = next(size for size in self._sizes if size >= len(images))
        if size not in self._runs:
            self._runs[size] = self._bind(size, images.shape[1:])
        return [value[: len(images)] for value in self._runs[size](images)]

    def _bind(self, size: int, shape: Iterable[int]) -> Callable[[Array], list[np.ndarray]]:
        """Buffers for batches of one size, and the function captured in them, if it can be."""
        there = torch.zeros((size, *shape), device=self._device).to(memory_format=torch.channels_last)
        here = torch.zeros((size, *shape), pin_memory=True)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), self._precision():
            way = self._fastest(size, there)
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    packed = _packed(way(there))
            torch.cuda.current_stream().wait_stream(side)
            try:
                with torch.cuda.graph(graph):
                    packed = _packed(way(there))
                self.captured.add(size)
            except RuntimeError:  # an operator that waits for the device
                torch.cuda.synchronize()

        def run(images: Array) -> list[np.ndarray]:
            nonlocal packed
            here[: len(images)].copy_(torch.from_numpy(images))
            with torch.inference_mode(), self._precision():
                there.copy_(here, non_blocking=True)
                if size in self.captured:
                    graph.replay()
                else:
                    packed = _packed(way(there))
            return _unpacked(packed)

        return run

    def _fastest(self, size: int, images: Tensor) -> Way:
        if size not in self.chosen:
            took = [self._seconds(way, images) for way in self._ways] if len(self._ways) > 1 else [0.0]
            self.chosen[size] = int(np.argmin(took))
        return self._ways[self.chosen[size]]

    def _seconds(self, way: Way, images: Tensor) -> float:
        """Seconds of a run, the least of several."""
        took = []
        for _ in range(_WARM_UPS + _RUNS):
            self._wait()
            began = time.perf_counter()
            way(images)
            self._wait()
            took.append(time.perf_counter() - began)
        return min(took[_WARM_UPS:])

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _precision(self) -> AbstractContextManager[object]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype, cache_enabled=False)


def _packed(values: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, ...]]]:
    """All outputs behind each other in one tensor, which is one copy from the device, and their shapes."""
    return torch.cat([value.float().reshape(-1) for value in values]), [tuple(value.shape) for value in values]


def _unpacked(packed: tuple[Tensor, list[tuple[int, ...]]]) -> list[np.ndarray]:
    flat, shapes = packed[0].cpu().numpy(), packed[1]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
