"""Which engines a model file needs: its stages as TensorRT reads them, and the sizes of their batches."""

from dataclasses import dataclass

from s2ap_defend.errors import ModelFileError
from s2ap_defend.executors.stages import tensorrt_stage
from s2ap_defend.executors.tensorrt import BUCKETS
from s2ap_defend.model_file import ModelFile
from s2ap_defend.two_four import is_two_four
from s2ap_defend.verification.lint import lint_stage
from s2ap_defend.verification.verify import file_stages

__all__ = ["PlannedEngine", "plan_engines"]

_SHOWN = 3


@dataclass(frozen=True)
class PlannedEngine:
    """One engine before it is built.

    Attributes:
        scope: Of its stage.
        low: Smallest batch.
        high: Largest batch, for which kernels are chosen.
        shape: (C, H, W) of an image.
        sparse: Whether its weights are 2:4, so that sparse kernels may be taken.
        model: The stage, serialised ONNX.
    """

    scope: str
    low: int
    high: int
    shape: tuple[int, int, int]
    sparse: bool
    model: bytes

    @property
    def file(self) -> str:
        """Its file name in the folder of engines."""
        return f"{self.scope}-{self.low}-{self.high}.engine"


def plan_engines(file: ModelFile) -> tuple[PlannedEngine, ...]:
    """The engines of a file, stage by stage.

    Args:
        file: A verified file.

    Raises:
        ModelFileError: If TensorRT does not take a stage, with the nodes; or one cannot be cut out.
    """
    stages = {scope: tensorrt_stage(file.proto, scope) for scope in file_stages(file)}
    refused = [f"stage {scope}: {one}" for scope, stage in stages.items() for one in lint_stage(stage)]
    if refused:
        more = f" (and {len(refused) - _SHOWN} more)" if len(refused) > _SHOWN else ""
        raise ModelFileError(
            f"{file.path} is not for TensorRT: {'; '.join(refused[:_SHOWN])}{more}; harden with export.tensorrt = "
            "true, or use --device cuda"
        )
    shape = file.manifest.input.shape
    return tuple(
        PlannedEngine(scope, low, high, shape, is_two_four(stage), stage.SerializeToString(deterministic=True))
        for scope, stage in stages.items()
        for low, high in BUCKETS
    )
