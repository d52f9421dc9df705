"""One session over the whole file: the reference executor."""

import numpy as np

from s2ap_defend.engines import Engine
from s2ap_defend.manifest import FORMAT_VERSION
from s2ap_defend.model_file import output_names
from s2ap_defend.types import Float32, Verdicts


class WholeExecutor:
    """Runs the defended graph as it is in the file.

    Args:
        engine: An engine over the whole model file.
        format_version: Version of the file's format; nothing abstains in one of version 1.
    """

    def __init__(self, engine: Engine, *, format_version: int = FORMAT_VERSION) -> None:
        self._engine = engine
        self._outputs = output_names(format_version)

    @property
    def provider(self) -> str:
        """Execution provider of the engine."""
        return self._engine.provider

    def __call__(self, images: Float32) -> Verdicts:
        """Verdicts for checked images [N, C, H, W]."""
        answers = dict(zip(self._outputs, self._engine.run({"image": images}, self._outputs), strict=True))
        answers.setdefault("abstained", np.zeros(len(images), dtype=bool))
        return Verdicts(**answers)
