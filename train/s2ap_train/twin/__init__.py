"""The differentiable twin of a defended model file: what an attacker that knows everything computes gradients with."""

from s2ap_train.twin.onnx_module import TorchStage, torch_stage
from s2ap_train.twin.pipeline import Twin

__all__ = ["TorchStage", "Twin", "torch_stage"]
