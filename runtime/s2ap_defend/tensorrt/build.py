"""Building engines with TensorRT through Polygraphy; neither is needed where nothing is built.

Networks are strongly typed: what computes in float16 or int8 says so in the ONNX.
"""

import importlib
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, cast

from s2ap_defend.errors import EngineError
from s2ap_defend.executors.tensorrt import TIMING_CACHE
from s2ap_defend.tensorrt.index import Machine
from s2ap_defend.tensorrt.plan import PlannedEngine

__all__ = ["BatchProfile", "Polygraphy", "build_engine", "this_machine"]

_QUERY = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
_PATIENCE_S = 20
_INSTALL = "install NVIDIA's TensorRT and polygraphy, which come from NVIDIA (docs/export.md)"


class BatchProfile(Protocol):
    """Sizes of a batch, in Polygraphy."""

    def add(self, name: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> "BatchProfile":  # noqa: A002
        """The profile with the shapes of one input more."""


class Polygraphy(Protocol):
    """What is called of `polygraphy.backend.trt`, which has no types; a test compares it with the library's own."""

    def Profile(self) -> BatchProfile:  # noqa: N802
        """An empty profile."""

    def CreateConfig(  # noqa: N802
        self, *, profiles: Sequence[BatchProfile], sparse_weights: bool, load_timing_cache: str | None
    ) -> object:
        """What makes the configuration of a builder."""

    def network_from_onnx_bytes(self, model_bytes: bytes, *, strongly_typed: bool) -> object:
        """A builder, network and parser."""

    def engine_bytes_from_network(self, network: object, *, config: object, save_timing_cache: str) -> object:
        """The serialised engine, which has a buffer."""


def this_machine() -> Machine:
    """The GPU, its driver and TensorRT.

    Raises:
        EngineError: If one is missing.
    """
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=_PATIENCE_S)  # noqa: S603
        gpu, driver = (part.strip() for part in done.stdout.splitlines()[0].rsplit(",", 1))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
        raise EngineError(
            "TensorRT engines are built on the GPU that runs them, and nvidia-smi finds none here; run this on the "
            "machine that serves, with NVIDIA's driver"
        ) from error
    try:
        return Machine(gpu=gpu, driver=driver, tensorrt=version("tensorrt"))
    except PackageNotFoundError as error:
        raise EngineError(f"TensorRT is not installed for this Python; {_INSTALL}") from error


def build_engine(planned: PlannedEngine, folder: Path) -> bytes:
    """Build an engine; the timing cache in the folder is read and written.

    Raises:
        EngineError: If a library is missing, or TensorRT refuses the stage.
    """
    trt = _polygraphy()
    cache = folder / TIMING_CACHE / "polygraphy.cache"
    cache.parent.mkdir(parents=True, exist_ok=True)
    shapes = [(rows, *planned.shape) for rows in (planned.low, planned.high, planned.high)]
    try:
        network = trt.network_from_onnx_bytes(planned.model, strongly_typed=True)
        config = trt.CreateConfig(
            profiles=[trt.Profile().add("image", *shapes)],
            sparse_weights=planned.sparse,
            load_timing_cache=str(cache) if cache.exists() else None,
        )
        made = trt.engine_bytes_from_network(network, config=config, save_timing_cache=str(cache))
        return bytes(cast("bytes", made))
    except Exception as error:  # Polygraphy's and TensorRT's own types
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(f"TensorRT builds no engine {planned.file}: {said}") from error


def _polygraphy() -> Polygraphy:
    try:
        return cast("Polygraphy", importlib.import_module("polygraphy.backend.trt"))
    except ImportError as error:
        raise EngineError(f"polygraphy is not installed for this Python; {_INSTALL}") from error
