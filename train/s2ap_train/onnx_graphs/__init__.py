"""An ONNX graph as differentiable torch functions, or as a function alone where an operator has no gradient here."""

from s2ap_train.onnx_graphs.onnx_module import UndifferentiableError, torch_stage
from s2ap_train.onnx_graphs.served_stage import ServedStage, with_gradient_of
from s2ap_train.onnx_graphs.stage import TorchStage

__all__ = ["ServedStage", "TorchStage", "UndifferentiableError", "torch_stage", "with_gradient_of"]
