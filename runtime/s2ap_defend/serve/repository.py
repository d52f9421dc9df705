"""The repository extension of the protocol over HTTP: what models there are, and loading and unloading them."""

from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from s2ap_defend.serve.body import BodyLimits, ClientGoneError, read_body
from s2ap_defend.serve.errors import ProtocolError
from s2ap_defend.serve.responses import json_response
from s2ap_defend.serve.service import Service
from s2ap_defend.serve.shares import peer_of

__all__ = ["check_load", "describe_repository", "repository_routes"]

MOST_BYTES = 4096
OF_FILES = ("config", "file:")  # beginnings of the parameters by which others give the files themselves
BODY = {"content": {"application/json": {"schema": {"type": "object"}}}}


def describe_repository(service: Service, *, ready: bool) -> list[dict[str, str]]:
    """The models, or those that are ready, in the shape of the protocol."""
    found = []
    for model in service.models.values():
        taken = service.takes(model)
        if taken or not ready:
            state, reason = ("READY", "") if taken else ("UNAVAILABLE", model.state)
            found.append({"name": model.name, "version": model.served.version, "state": state, "reason": reason})
    return found


def check_load(parameters: object) -> None:
    """Check the parameters of a request to load a model: files lie where the server's settings say, nobody sends them.

    Raises:
        ProtocolError: If they give files, or are no object.
    """
    if not isinstance(parameters, dict):
        raise ProtocolError("parameters must be a JSON object")
    given = next((name for name in parameters if str(name).startswith(OF_FILES)), None)
    if given is not None:
        raise ProtocolError(
            f"parameter {str(given)[:40]!r} is not taken: replace the model's file where it lies, then load it"
        )


def repository_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["repository"])
    extra: dict[str, Any] = {"requestBody": BODY}

    @router.post("/v2/repository/index", summary="The models and their states.", openapi_extra=extra)
    async def index(request: Request) -> Response:
        asked = await _read(service, request)
        return json_response(describe_repository(service, ready=asked.get("ready") is True))

    @router.post("/v2/repository/models/{model}/load", summary="Load the model's file again.", openapi_extra=extra)
    async def load(request: Request, model: str) -> Response:
        found = service.model(model)
        service.check_control()
        check_load((await _read(service, request)).get("parameters", {}))
        await found.load()
        return json_response({})

    @router.post("/v2/repository/models/{model}/unload", summary="Unload the model.", openapi_extra=extra)
    async def unload(request: Request, model: str) -> Response:
        found = service.model(model)
        service.check_control()
        await _read(service, request)
        await found.unload()
        return json_response({})

    return router


async def _read(service: Service, request: Request) -> dict[str, Any]:
    """The object in a small body; empty if there is none."""
    config = service.config
    limits = BodyLimits(MOST_BYTES, config.body_timeout_s, config.body_rate_bytes_s)
    client, length = request.scope.get("client"), request.headers.get("content-length")
    try:
        with service.receiving.hold(peer_of(client)) as hold:
            body = await read_body(request.receive, None if length is None else int(length), limits, hold)
        found = orjson.loads(body) if body else {}
    except ClientGoneError as error:
        raise ProtocolError("the client is gone") from error
    except ValueError as error:
        raise ProtocolError(f"the request is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ProtocolError("the request must be a JSON object")
    return found
