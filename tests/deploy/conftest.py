"""The served model of the server's own tests."""

from tests.runtime.conftest import batch, classifier

__all__ = ["batch", "classifier"]
