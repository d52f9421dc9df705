"""Answers: JSON, and every error as {"error": "..."} and nothing else."""

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from s2ap_defend.errors import DefendError, InputError
from s2ap_defend.serve.errors import RequestError
from s2ap_defend.serve.exchange import current_id

JSON = "application/json"


class Encoded(Response):
    """A body that is encoded already, with the headers that it needs and no search for others.

    Args:
        body: As it is sent.
        media_type: Of it.
        headers: More of them, names in lower case.
    """

    def __init__(self, body: bytes, media_type: bytes, *headers: tuple[bytes, bytes]) -> None:
        self.status_code, self.background, self.body = 200, None, body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", media_type), *headers]


def json_response(payload: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:  # noqa: ANN401
    """A JSON answer; Mapping keys must be strings, numpy arrays are taken."""
    body = orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, headers=dict(headers or {}), media_type=JSON)


def error_body(reason: str) -> bytes:
    """The body of every error."""
    return orjson.dumps({"error": reason})


def error_response(error: DefendError) -> Response:
    """The answer to a request that failed."""
    status, reason = explain(error)
    return json_response(
        {"error": reason}, status=status, headers=error.headers if isinstance(error, RequestError) else None
    )


def explain(error: DefendError) -> tuple[int, str]:
    """HTTP status and text of an error: its message is for the client, except where the fault is the server's."""
    if isinstance(error, RequestError):
        return error.status, str(error)
    if isinstance(error, InputError):
        return 400, str(error)
    return 500, f"the model failed on this request; {_where()}"


def outcome_of(error: DefendError) -> str:
    """Name of an error in the metrics."""
    if isinstance(error, RequestError):
        return error.outcome
    return "invalid" if isinstance(error, InputError) else "error"


async def on_http_error(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, with their headers (Allow)."""
    if not isinstance(error, HTTPException):
        raise error
    reason = {
        404: f"there is nothing at {request.url.path[:200]}",
        405: f"{request.method} is not allowed at {request.url.path[:200]}",
    }.get(error.status_code, str(error.detail))
    return json_response({"error": reason}, status=error.status_code, headers=error.headers)


async def on_validation_error(_: Request, error: Exception) -> Response:
    """422 of FastAPI's own parameter checks."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return json_response({"error": f"{where}: {first['msg']}"}, status=422)


async def on_defend_error(_: Request, error: Exception) -> Response:
    """Errors of this package that leave a route."""
    if not isinstance(error, DefendError):
        raise error
    return error_response(error)


def failed_response() -> Response:
    """The answer where the server has a bug; the traceback is in the log."""
    return json_response({"error": f"the server failed on this request; {_where()}"}, status=500)


async def on_bug(_: Request, __: Exception) -> Response:
    """Everything else."""
    return failed_response()


def _where() -> str:
    name = current_id()
    return "the server's log says why" + (f", at request_id {name}" if name else "")
