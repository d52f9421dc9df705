"""How ONNX Runtime's TensorRT provider runs the stages of a file: sizes of batches, and where its engines lie."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from onnx import ModelProto

from s2ap_defend.errors import ModelFileError
from s2ap_defend.two_four import is_two_four

__all__ = [
    "BUCKETS",
    "ENGINE_CACHE",
    "TIMING_CACHE",
    "engine_folder",
    "made_folders",
    "provider_options",
    "stage_options",
]

BUCKETS = ((1, 1), (2, 16), (17, 256))
"""Smallest and largest batch of each engine of a stage: TensorRT chooses its kernels for the largest."""
ENGINE_CACHE = "onnxruntime"
"""Folder of the engines that ONNX Runtime builds, in the folder of all engines."""
TIMING_CACHE = "timing"
"""Folder of what TensorRT measured of its kernels: with it an engine is built in seconds instead of minutes."""


def engine_folder(model: Path) -> Path:
    """Where the engines of a model file lie unless another folder is named: NAME.tensorrt next to it."""
    return model.with_name(f"{model.name}.tensorrt")


@contextmanager
def made_folders(folder: Path) -> Iterator[None]:
    """The folders into which ONNX Runtime writes; those that were not there are gone again if what follows fails.

    Raises:
        ModelFileError: If they cannot be made.
    """
    wanted = [folder / ENGINE_CACHE, folder / TIMING_CACHE]
    missing = [one for one in (*wanted, folder, *folder.parents) if not one.exists()]
    try:
        for one in wanted:
            one.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelFileError(f"{folder} cannot be written: {error.strerror or error}; name another folder") from error
    try:
        yield
    except BaseException:
        for one in missing:
            with suppress(OSError):  # another process has written there
                one.rmdir()
        raise


def provider_options(folder: Path, scope: str, shape: Sequence[int], *, sparse: bool) -> dict[str, str]:
    """Options of the provider for one stage.

    Args:
        folder: Of the engines; ONNX Runtime writes its own there and begins with them the next time.
        scope: Of the stage.
        shape: (C, H, W) of its images.
        sparse: Whether its weights are 2:4.
    """
    sides = "x".join(map(str, shape))
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder / ENGINE_CACHE),
        "trt_engine_cache_prefix": scope,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder / TIMING_CACHE),
        "trt_profile_min_shapes": ",".join(f"image:{low}x{sides}" for low, _ in BUCKETS),
        "trt_profile_opt_shapes": ",".join(f"image:{high}x{sides}" for _, high in BUCKETS),
        "trt_profile_max_shapes": ",".join(f"image:{high}x{sides}" for _, high in BUCKETS),
        "trt_sparsity_enable": str(sparse),
    }


def stage_options(folder: Path, scope: str, model: bytes) -> dict[str, str]:
    """Options of the provider for a serialised stage."""
    stage = ModelProto.FromString(model)
    dims = stage.graph.input[0].type.tensor_type.shape.dim
    return provider_options(folder, scope, [dim.dim_value for dim in dims[1:]], sparse=is_two_four(stage))
