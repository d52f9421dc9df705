"""Stages that TensorRT would refuse are refused here, where a network can still be written otherwise."""

from onnx import ModelProto

from s2ap_defend.errors import RecipeError
from s2ap_defend.verification.lint import lint_stage

__all__ = ["check_fit"]

_SHOWN = 3


def check_fit(stage: ModelProto, *, wanted: bool = True) -> None:
    """Refuse a stage that TensorRT does not take.

    Args:
        stage: Its graph carries the scope as its name.
        wanted: `export.tensorrt` of the recipe; False lets every stage pass.

    Raises:
        RecipeError: With the node and what is wrong with it.
    """
    found = lint_stage(stage) if wanted else []
    if found:
        more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
        raise RecipeError(
            f"stage {stage.graph.name} is not for TensorRT: {'; '.join(found[:_SHOWN])}{more}; write the network "
            "without, or set export.tensorrt = false and use the file on ONNX Runtime alone"
        )
