"""A model file on PyTorch, for machines that have it: its stages as torch functions, the decision as ever."""

from s2ap_export.torch_engine.load import load_torch

__all__ = ["load_torch"]
