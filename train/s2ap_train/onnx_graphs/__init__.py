"""An ONNX graph as differentiable torch functions."""

from s2ap_train.onnx_graphs.onnx_module import TorchStage, torch_stage

__all__ = ["TorchStage", "torch_stage"]
