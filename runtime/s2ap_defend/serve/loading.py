"""Load a model file as a server's settings say, also one that may be replaced meanwhile."""

import logging
from pathlib import Path

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import DefendError, EngineError, ModelFileError
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.serve.watched import Signature, look

__all__ = ["load", "load_settled"]

logger = logging.getLogger(__name__)

READS = 3


def load(path: Path, config: ServerConfig, threads: int | None) -> DefendedClassifier:
    """Load a model with so many threads.

    Raises:
        ModelFileError: If the file is missing, broken, changed, undefended or of another version.
        EngineError: If the device cannot be used.
    """
    return DefendedClassifier.load(
        path,
        device=config.device,
        threads=threads,
        executor=config.executor,
        cache=config.cache,
        engines=config.engines,
        constant_time=config.constant_time,
    )


def load_settled(path: Path, config: ServerConfig, threads: int | None) -> tuple[DefendedClassifier, Signature]:
    """Load a model while others serve, with the signature of its file.

    An engine may read the file a second time after it was verified, so it must be the same before and after.

    Raises:
        ModelFileError: If the file is missing, broken, changed, undefended or of another version, or changes on and on.
        EngineError: If the device cannot be used, or something else fails.
    """
    for _ in range(READS):
        before = look([path])
        try:
            classifier = load(path, config, threads)
        except DefendError:
            raise
        except Exception as error:
            logger.exception("%s cannot be loaded", path)
            raise EngineError(f"{path} cannot be loaded: {type(error).__name__}; the log says more") from error
        if look([path]) == before:
            return classifier, before
    raise ModelFileError(f"{path} changes while it is read; write it elsewhere and move it there in one step")
