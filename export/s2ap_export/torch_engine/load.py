"""Opening a model file whose stages run on PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from onnx import ModelProto

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.engines.bound import SIZES
from s2ap_defend.errors import EngineError
from s2ap_defend.executors.groups import Group, Joining
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.executors.stages import Stage
from s2ap_defend.model_file import open_model_file
from s2ap_export.torch_engine.engine import TorchEngine
from s2ap_export.torch_engine.joint import Members, joint_ways

__all__ = ["DTYPES", "Precision", "TorchStages", "load_torch"]

Precision = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class TorchStages:
    """The stages of a step as one torch function.

    Attributes:
        device: Where they run.
        dtype: Of convolutions and products of matrices, as torch.autocast has it: on CUDA softmax, sums and
            exponentials stay in float32.
        members: Whether members of equal structure run as one batched network.
        sizes: Of batches, ascending; on CUDA each is captured in a CUDA graph at its first run.
    """

    threads: ClassVar[int] = 1
    joining: ClassVar[Joining] = "step"
    device: torch.device
    dtype: torch.dtype = torch.float32
    members: Members = "apart"
    sizes: tuple[int, ...] = SIZES

    def start(self, model: ModelProto, groups: Sequence[Group], folder: Path | None = None) -> dict[str, Stage]:
        """The engines by the first scope of each group.

        Raises:
            ModelFileError: If a stage cannot be cut out, or has an operator that the twin does not know.
        """
        return {group.scopes[0]: self._stage(model, group, folder) for group in groups}

    def _stage(self, model: ModelProto, group: Group, folder: Path | None) -> Stage:
        names, ways = joint_ways(model, group, self.device, self.members, folder)
        engine = TorchEngine(ways, names, self.device, self.dtype, self.sizes)
        return Stage(engine, names, self.sizes[-1])


def load_torch(
    path: str | Path,
    *,
    device: str | None = None,
    dtype: Precision = "float32",
    members: Members | None = None,
) -> DefendedClassifier:
    """Open and verify a model file, and run its stages on PyTorch; waves are decided on the host, as always.

    In float32 verdicts are those of the file up to rounding. In bfloat16 or float16 convolutions and products of
    matrices are rounded, which the thresholds of a file in float32 were not calibrated for.

    Args:
        path: The file; weights in external data lie in the same folder.
        device: 'cpu', 'cuda', 'cuda:1', ...; None: CUDA where there is one.
        dtype: Of convolutions and products of matrices, as torch.autocast has it.
        members: Whether members of equal structure run 'apart' or 'batched', as one network; 'measured' takes the
            faster for each size of batch. None: 'measured' on CUDA, else 'apart'.

    Raises:
        ModelFileError: If the file is missing, broken or changed, or has an operator that torch functions lack.
        EngineError: If there is no such device or type.
    """
    if dtype not in DTYPES:
        raise EngineError(f"dtype {dtype!r} is not known; choose {', '.join(DTYPES)}")
    place = _device(device)
    how: Members = members or ("measured" if place.type == "cuda" else "apart")
    file = open_model_file(Path(path))
    executor = StagedExecutor.with_starter(file, TorchStages(place, DTYPES[dtype], how))
    return DefendedClassifier(file.path, file.manifest, executor)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"device {name!r} is not known to PyTorch; choose cpu or cuda") from error
    if device.type not in {"cpu", "cuda"}:
        raise EngineError(f"device {name!r} is not supported; choose cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise EngineError(f"device {name!r} was asked for, but PyTorch finds {found} CUDA devices; use device='cpu'")
    return device
