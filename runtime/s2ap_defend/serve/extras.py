"""What the server is only with an extra, or one clear sentence."""

from importlib import import_module
from types import ModuleType

from s2ap_defend.errors import RecipeError, first_line

__all__ = ["grpc_server", "tracing"]


def grpc_server() -> ModuleType:
    """The module that serves gRPC.

    Raises:
        RecipeError: If the extra [grpc] is not installed.
    """
    return _load("s2ap_defend.serve.grpc.server", "gRPC", "grpc")


def tracing() -> ModuleType:
    """The module that makes spans.

    Raises:
        RecipeError: If the extra [otel] is not installed.
    """
    return _load("s2ap_defend.serve.tracing", "OpenTelemetry", "otel")


def _load(module: str, what: str, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:  # tritonclient raises RuntimeError where grpc is missing
        raise RecipeError(
            f"{what} needs the extra [{extra}]; pip install '.[{extra}]' in a checkout ({first_line(error)})"
        ) from error
