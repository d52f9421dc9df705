"""Run an image classifier that defends itself: purify, detect, correct, all inside one ONNX file."""

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.drift import DriftMonitor, DriftReport
from s2ap_defend.errors import DefendError, EngineError, InputError, ModelFileError, RecipeError
from s2ap_defend.types import Verdicts

__all__ = [
    "DefendError",
    "DefendedClassifier",
    "DriftMonitor",
    "DriftReport",
    "EngineError",
    "InputError",
    "ModelFileError",
    "RecipeError",
    "Verdicts",
    "__version__",
]

__version__ = "0.1.0"
