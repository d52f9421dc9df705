"""ONNX Runtime on the CPU, on CUDA, or through its TensorRT provider."""

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from ctypes import CDLL
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2ap_defend.engines import Array, Device
from s2ap_defend.engines.cores import operator_threads
from s2ap_defend.engines.pinned import pin
from s2ap_defend.errors import EngineError, ModelFileError, first_line

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by the import: from 1.31 on it writes events to disk
import onnxruntime

_PROVIDERS: dict[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
_CUDA = "pip install '.[gpu]' in a checkout (Linux, x86-64) brings the CUDA libraries"
INSTALL = {"cuda": _CUDA, "tensorrt": f"{_CUDA}, TensorRT's are installed separately"}
_ALWAYS = {"cuda": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}}
"""Options of a provider: thresholds are calibrated in float32, whose mantissa TF32 cuts to 10 bits; and an exhaustive
search for the fastest convolution, the default, makes whoever comes first with a size of batch wait for it."""
_LIBRARIES = ("cudart", "cublasLt", "cublas", "nvrtc", "curand", "cufft", "cudnn")
"""Of CUDA, each behind those that it needs."""
_FATAL_ONLY = 4  # errors come as exceptions


class OnnxRuntimeEngine:
    """One ONNX Runtime session.

    Args:
        model: Path of a model file (its external data lies next to it) or serialised bytes.
        folder: Of the external data of serialised bytes; None: they have none. ONNX Runtime maps it into memory.
        device: 'auto' takes CUDA where it works and the CPU elsewhere; a named device is used or refused.
        threads: Threads inside one operator; None: as many as this process has cores, within OMP_NUM_THREADS.
        optimised: Whether the model is one that was saved for this machine by `save_to`, and is run as it is.
        save_to: Where to save the optimised model; it fits this machine and this ONNX Runtime only.
        provider_options: Of the device's provider, by their names in ONNX Runtime.

    Raises:
        EngineError: If the device is not there.
        ModelFileError: If ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        folder: Path | None = None,
        device: Device = "auto",
        threads: int | None = None,
        optimised: bool = False,
        save_to: Path | None = None,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        chosen = available_device(device)
        wanted = _PROVIDERS[chosen]
        if missing := "" if chosen == "cpu" else _load_libraries(chosen):
            raise _not_started(device, f"could not load {missing}", chosen)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = operator_threads() if threads is None else threads
        if optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if save_to is not None:
            options.optimized_model_filepath = str(save_to)
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        source: Any = str(model) if isinstance(model, Path) else model
        own = _ALWAYS.get(chosen, {}) | dict(provider_options or {})
        each: list[Any] = [(wanted[0], own), *wanted[1:]]
        fallback = int(device == "auto")  # to other providers, which ONNX Runtime prints on standard output
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=each, enable_fallback=fallback)
        except Exception as error:  # the runtime raises its own, undocumented types
            if _is_of_provider(error):
                raise _not_started(device, f"could not start {wanted[0]}", chosen) from error
            raise ModelFileError(f"ONNX Runtime cannot load the model: {first_line(error)}") from error
        self.provider: str = self._session.get_providers()[0]
        if device != "auto" and self.provider != wanted[0]:
            raise _not_started(device, f"could only start {self.provider}", chosen)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[np.ndarray]:
        """Evaluate the graph; see Engine.run."""
        try:
            return list(self._session.run(list(outputs), dict(feeds)))
        except Exception as error:
            raise _failed(self.provider, error) from error

    def bind(self, size: int, *, number: int) -> "BoundBatch":
        """Buffers on the device for batches of one size, of a graph whose only input is `image`.

        Args:
            size: Images.
            number: Of the size among all of this engine; its CUDA graph has it.

        Raises:
            EngineError: If the device has no memory for them.
        """
        return BoundBatch(self._session, size, number)


class BoundBatch:
    """The input and the outputs of an engine for batches of one size, in buffers on its device that are used again.

    Args:
        session: Of the graph, whose only input is `image` [n, C, H, W].
        size: Images.
        number: Of the CUDA graph.

    Raises:
        EngineError: If the device has no memory for them.
    """

    def __init__(self, session: Any, size: int, number: int) -> None:  # noqa: ANN401 - ONNX Runtime has no types
        self._session, self._provider = session, str(session.get_providers()[0])
        self._device = "cpu" if self._provider == "CPUExecutionProvider" else "cuda"

        def buffer(value: Any) -> Any:  # noqa: ANN401
            shape = [dim if isinstance(dim, int) else size for dim in value.shape]
            kind = _TYPES[value.type]
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, self._device, 0)

        try:
            self._image = buffer(session.get_inputs()[0])
            self._outputs = {output.name: buffer(output) for output in session.get_outputs()}
        except Exception as error:
            raise _failed(self._provider, error) from error
        self._host = np.zeros(self._image.shape(), dtype=np.float32)
        self.pinned = self._device == "cuda" and pin(self._host)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("image", self._image)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))

    def run(self, images: Array | Sequence[Array]) -> dict[str, np.ndarray]:
        """All outputs by name, for at most `size` images; rows beyond those are of images that were here before.

        Raises:
            EngineError: If the engine fails.
        """
        try:
            if len(images):
                self._host[: len(images)] = images
            self._image.update_inplace(self._host)
            self._session.run_with_iobinding(self._binding, self._options)
            self._binding.synchronize_outputs()
            said = {name: value.numpy() for name, value in self._outputs.items()}
        except Exception as error:
            raise _failed(self._provider, error) from error
        return {name: value.copy() for name, value in said.items()} if self._device == "cpu" else said


_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def version() -> str:
    """Of ONNX Runtime."""
    return str(onnxruntime.__version__)


def chosen_device(device: Device) -> Literal["cpu", "cuda", "tensorrt"]:
    """The device that is meant: 'auto' is CUDA where it works and the CPU elsewhere.

    Raises:
        EngineError: If there is no such name.
    """
    if device == "auto":
        return "cuda" if _cuda_is_usable() else "cpu"
    if device not in _PROVIDERS:
        raise EngineError(f"device {device!r} is not known; choose auto, {', '.join(_PROVIDERS)}")
    return device


def available_device(device: Device) -> Literal["cpu", "cuda", "tensorrt"]:
    """The device that is meant, where this ONNX Runtime was built for it; whether it starts is another question.

    Raises:
        EngineError: If there is no such name, or no provider of it.
    """
    chosen = chosen_device(device)
    if _PROVIDERS[chosen][0] not in onnxruntime.get_available_providers():
        raise EngineError(f"this ONNX Runtime has no {_PROVIDERS[chosen][0]}; {INSTALL[chosen]}; or use --device cpu")
    return chosen


@cache
def _load_libraries(chosen: str) -> str:
    """Load the libraries of CUDA and TensorRT that pip installed: a provider looks for those of the system alone.

    Returns:
        Which of CUDA is missing and why, empty where all are there.
    """
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(OSError, RuntimeError):
        onnxruntime.preload_dlls()
    if chosen == "tensorrt":
        with suppress(ImportError, OSError):
            import_module("tensorrt")  # which loads its own
    failed = [line.removeprefix("Failed to load ") for line in printed.getvalue().splitlines()]
    missing = [line for line in failed if line.startswith("lib") and "libnvrtc" not in line]  # does without that one
    spec = find_spec("nvidia") if missing else None
    for folder in (spec and spec.submodule_search_locations) or ():  # ONNX Runtime looks next to itself alone
        for file in (file for name in _LIBRARIES for file in sorted(Path(folder).glob(f"*/lib/lib{name}.so.*"))):
            _loads(str(file))
    return next((line.partition(": ")[2] for line in missing if not _loads(line.partition(": ")[0])), "")


def _loads(library: str) -> bool:
    """Load a library by its path, or by its name where the system has it or it is loaded already."""
    with suppress(OSError):
        CDLL(library)
        return True
    return False


def _cuda_is_usable() -> bool:
    provided = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return provided and Path("/dev/nvidiactl").exists() and not _load_libraries("cuda")


def _is_of_provider(error: Exception) -> bool:
    """Whether a provider could not be started, whatever the model is."""
    return any(word in str(error) for word in ("RegisterTensorRTPlugins", "CUDA failure", "CUDA error"))


def _not_started(device: str, found: str, chosen: str) -> EngineError:
    return EngineError(
        f"device {device!r} was asked for, but ONNX Runtime {found}; check the driver; {INSTALL[chosen]}; or use "
        "--device cpu"
    )


def _failed(provider: str, error: Exception) -> EngineError:
    return EngineError(f"ONNX Runtime failed on {provider}: {first_line(error)}")
