"""One session over the whole file: the reference executor."""

from s2ap_defend.engines import Engine
from s2ap_defend.types import Float32, Verdicts


class WholeExecutor:
    """Runs the defended graph as it is in the file.

    Args:
        engine: An engine over the whole model file.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def provider(self) -> str:
        """Execution provider of the engine."""
        return self._engine.provider

    def __call__(self, images: Float32) -> Verdicts:
        """Verdicts for checked images [N, C, H, W]."""
        return Verdicts(*self._engine.run({"image": images}, Verdicts.FIELDS))
