"""The web application around one classifier."""

import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from s2ap_defend import __version__
from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import DefendError
from s2ap_defend.images import chosen_resize
from s2ap_defend.serve import metadata, openapi, page, responses
from s2ap_defend.serve.access import CALLER
from s2ap_defend.serve.access_log import AccessLog
from s2ap_defend.serve.classify import ImagesCodec
from s2ap_defend.serve.codecs import ProtocolCodec
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.serve.edge import Application
from s2ap_defend.serve.endpoint import InferenceEndpoint
from s2ap_defend.serve.errors import UnavailableError
from s2ap_defend.serve.protocol import largest_request
from s2ap_defend.serve.responses import json_response
from s2ap_defend.serve.service import Service
from s2ap_defend.types import Resize

DECODER_THREADS = 2
INFER_ROUTE = "/v2/models/{model}/infer"


def create_app(classifier: DefendedClassifier, config: ServerConfig) -> Application:
    """Build the application; the model is warmed up when the application starts.

    Args:
        classifier: What it serves, under the stem of its file's name.
        config: Limits, and whether evidence is exposed. Where to listen is not the application's business.

    Returns:
        An ASGI application; `app.state.service` is the Service inside.
    """
    service = Service(classifier, config)
    decoders = ThreadPoolExecutor(DECODER_THREADS, thread_name_prefix="s2ap-decode")
    readers = ThreadPoolExecutor(DECODER_THREADS, thread_name_prefix="s2ap-images")  # tensors do not wait for files

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()
            for pool in (decoders, readers):
                pool.shutdown(wait=False, cancel_futures=True)

    app = Application(
        title="s2ap-defend",
        version=__version__,
        summary="An image classifier that defends itself.",
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={
            HTTPException: responses.on_http_error,
            RequestValidationError: responses.on_validation_error,
            DefendError: responses.on_defend_error,
            Exception: responses.on_bug,
        },
    )
    app.state.service = service
    app.access = service.access
    app.access_log = AccessLog() if config.access_log else None
    app.allowed_hosts = frozenset(host.lower() for host in config.allowed_hosts)
    size_bytes = min(config.max_body_bytes, largest_request(service.served, config.max_queue_rows))
    infer = InferenceEndpoint(service, ProtocolCodec(service.served), decoders, size_bytes, INFER_ROUTE)
    trained = classifier.manifest.input.resize
    resize = chosen_resize(config.resize, trained)
    images = ImagesCodec(
        service.served,
        classifier.classes,
        most_images=min(config.max_queue_rows, config.max_queue_bytes // (4 * math.prod(service.served.shape))),
        on_white=config.on_white,
        resize=resize,
        trained=trained,
    )
    classify = InferenceEndpoint(service, images, readers, config.max_body_bytes, "/classify")
    app.infer, app.classify = infer, classify
    for path in (INFER_ROUTE, "/v2/models/{model}/versions/{version}/infer"):
        app.router.routes.append(Route(path, infer, methods=["POST"]))  # for other methods: 405
    app.router.routes.append(Route("/classify", classify, methods=["POST"]))
    app.include_router(_health(service))
    app.include_router(_models(service))
    app.include_router(_operations(service))
    app.include_router(_page(service, resize))
    _extend_openapi(app, keys=config.keys is not None)
    return app


def _health(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"])

    def check_ready() -> None:
        service.check_ready()
        if service.state == "draining":
            raise UnavailableError("the server is stopping")

    @router.get("/v2/health/live", summary="Whether the process runs.")
    async def live() -> Response:
        return json_response({"live": True})

    @router.get("/v2/health/ready", summary="Whether new requests should be sent here.")
    async def ready() -> Response:
        check_ready()
        return json_response({"ready": True})

    def model_ready() -> dict[str, Any]:
        check_ready()
        return {"name": service.served.model, "ready": True}

    _about_model(router, service, "/ready", "Whether the model takes requests.", model_ready)
    return router


def _models(service: Service) -> APIRouter:
    router = APIRouter(tags=["models"])
    served = service.served

    def description() -> dict[str, Any]:
        return metadata.describe_model(service.served_to(CALLER.get()))

    def statistics() -> dict[str, Any]:
        service.catch_up()
        return {"model_stats": [service.statistics.to_json(served.model, served.version)]}

    def configuration() -> dict[str, Any]:
        return metadata.configure_model(
            service.served_to(CALLER.get()), service.classifier.classes, service.config.max_batch_rows
        )

    @router.get("/v2", summary="The server and its extensions of the protocol.")
    async def server_metadata() -> Response:
        return json_response(metadata.describe_server(__version__))

    @router.get("/v2/models/stats", summary="Statistics of all models.")
    async def all_statistics() -> Response:
        return json_response(statistics())

    _about_model(router, service, "", "Inputs and outputs of the model.", description)
    _about_model(router, service, "/config", "Configuration of the model.", configuration)
    _about_model(router, service, "/stats", "Statistics of the model.", statistics)
    return router


def _about_model(
    router: APIRouter, service: Service, suffix: str, summary: str, answer: Callable[[], dict[str, Any]]
) -> None:
    """Answer something about the model, with and without its version in the path and nowhere else."""

    @router.get(f"/v2/models/{{model}}{suffix}", summary=summary)
    async def latest(model: str) -> Response:
        service.check_model(model, None)
        return json_response(answer())

    @router.get(f"/v2/models/{{model}}/versions/{{version}}{suffix}", summary=summary)
    async def versioned(model: str, version: str) -> Response:
        service.check_model(model, version)
        return json_response(answer())


def _operations(service: Service) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/metrics", summary="Prometheus metrics.")
    async def metrics(request: Request) -> Response:
        service.catch_up()
        body, content_type = service.metrics.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return router


def _page(service: Service, resize: Resize | None) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index() -> Response:
        return page.page_file("page.html")

    def add(name: str) -> None:
        @router.get(f"/{name}")
        async def file() -> Response:
            return page.page_file(name)

    for name in page.PAGE_FILES:
        add(name)

    @router.get("/page.json")
    async def description() -> Response:
        return json_response(page.describe_page(service.classifier.manifest, service.served_to(CALLER.get()), resize))

    return router


def _extend_openapi(app: FastAPI, *, keys: bool) -> None:
    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            app.openapi_schema = openapi.add_endpoints(found, keys=keys)
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]
