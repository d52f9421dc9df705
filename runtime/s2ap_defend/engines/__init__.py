"""Inference engines: one method, `run(feeds) -> outputs`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Device = Literal["auto", "cpu", "cuda", "tensorrt"]


class Engine(Protocol):
    """Runs one ONNX graph on one device."""

    @property
    def provider(self) -> str:
        """Name of the execution provider that runs the graph, such as 'CPUExecutionProvider'."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[np.ndarray]:
        """Evaluate the graph.

        Args:
            feeds: Input name to array.
            outputs: Names of the wanted outputs.

        Raises:
            EngineError: If the engine fails.
        """
