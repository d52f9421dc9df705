"""Run an image classifier that defends itself: purify, detect, correct, all inside one ONNX file."""

from importlib import import_module
from typing import TYPE_CHECKING

from s2ap_defend.errors import DefendError, EngineError, InputError, ModelFileError, RecipeError

if TYPE_CHECKING:
    from s2ap_defend.classifier import DefendedClassifier
    from s2ap_defend.drift import DriftMonitor, DriftReport
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

if not TYPE_CHECKING:  # type checkers would take any name for one of this module
    _MODULES = {
        "DefendedClassifier": "classifier",
        "DriftMonitor": "drift",
        "DriftReport": "drift",
        "Verdicts": "types",
    }

    def __getattr__(name: str) -> object:
        """Import what needs onnxruntime or numpy when it is first asked for: `s2ap-defend --help` needs neither."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
