"""The web application around one or several classifiers."""

from collections.abc import AsyncIterator, Callable, Mapping
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
from s2ap_defend.serve import metadata, openapi, page, responses
from s2ap_defend.serve.access import CALLER
from s2ap_defend.serve.access_log import AccessLog
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.serve.docs import write_docs
from s2ap_defend.serve.edge import Application
from s2ap_defend.serve.endpoint import InferenceEndpoint, named
from s2ap_defend.serve.model import Model
from s2ap_defend.serve.repository import repository_routes
from s2ap_defend.serve.responses import json_response
from s2ap_defend.serve.service import Service

DECODER_THREADS = 2
INFER_ROUTE = "/v2/models/{model}/infer"


def create_app(classifiers: DefendedClassifier | Mapping[str, DefendedClassifier], config: ServerConfig) -> Application:
    """Build the application; models are warmed up when the application starts.

    Args:
        classifiers: What it serves: one, under the stem of its file's name, or several by their names, of which the
            first is asked where a request names none.
        config: Limits, and whether evidence is exposed. Where to listen is not the application's business.

    Returns:
        An ASGI application; `app.state.service` is the Service inside.
    """
    if not isinstance(classifiers, Mapping):
        classifiers = {classifiers.path.stem: classifiers}
    service = Service(classifiers, config)
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
    infer = InferenceEndpoint(service, lambda instance: instance.protocol, decoders, INFER_ROUTE)
    classify = InferenceEndpoint(service, lambda instance: instance.images, readers, "/classify")
    app.infer, app.classify = infer, classify
    for path in (INFER_ROUTE, "/v2/models/{model}/versions/{version}/infer"):
        app.router.routes.append(Route(path, infer, methods=["POST"]))  # for other methods: 405
    app.router.routes.append(Route("/classify", classify, methods=["POST"]))
    app.include_router(_health(service))
    app.include_router(_models(service))
    app.include_router(repository_routes(service))
    app.include_router(_operations(service))
    app.include_router(_page(service, app))
    _extend_openapi(app, keys=config.keys is not None)
    return app


def _health(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/v2/health/live", summary="Whether the process runs and can serve again by itself.")
    async def live() -> Response:
        service.check_live()
        return json_response({"live": True})

    @router.get("/v2/health/ready", summary="Whether new requests should be sent here.")
    async def ready() -> Response:
        service.check_ready()
        return json_response({"ready": True})

    def model_ready(model: Model) -> dict[str, Any]:
        model.check_ready()
        if service.draining:
            service.check_ready()
        return {"name": model.name, "ready": True}

    _about_model(router, service, "/ready", "Whether the model takes requests.", model_ready)
    return router


def _models(service: Service) -> APIRouter:
    router = APIRouter(tags=["models"])

    def description(model: Model) -> dict[str, Any]:
        return metadata.describe_model(model.served.shown(evidence=CALLER.get().evidence))

    def statistics(*models: Model) -> dict[str, Any]:
        return {"model_stats": [one.counts.to_json(one.name, one.served.version) for one in models]}

    def configuration(model: Model) -> dict[str, Any]:
        served = model.served.shown(evidence=CALLER.get().evidence)
        return metadata.configure_model(served, model.manifest.classes, service.config.max_batch_rows)

    @router.get("/v2", summary="The server and its extensions of the protocol.")
    async def server_metadata() -> Response:
        return json_response(metadata.describe_server(__version__))

    @router.get("/v2/models/stats", summary="Statistics of all models.")
    async def all_statistics() -> Response:
        return json_response(statistics(*service.models.values()))

    _about_model(router, service, "", "Inputs and outputs of the model.", description)
    _about_model(router, service, "/config", "Configuration of the model.", configuration)
    _about_model(router, service, "/stats", "Statistics of the model.", statistics)
    return router


def _about_model(
    router: APIRouter, service: Service, suffix: str, summary: str, answer: Callable[[Model], dict[str, Any]]
) -> None:
    """Answer something about a model, with and without its version in the path and nowhere else."""

    @router.get(f"/v2/models/{{model}}{suffix}", summary=summary)
    async def latest(model: str) -> Response:
        return json_response(answer(service.model(model)))

    @router.get(f"/v2/models/{{model}}/versions/{{version}}{suffix}", summary=summary)
    async def versioned(model: str, version: str) -> Response:
        return json_response(answer(service.model(model, version)))


def _operations(service: Service) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/metrics", summary="Prometheus metrics.")
    async def metrics(request: Request) -> Response:
        for model in service.models.values():
            model.counts.catch_up()
        body, content_type = service.metrics.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return router


def _page(service: Service, app: FastAPI) -> APIRouter:
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

    @router.get("/docs")
    async def docs() -> Response:
        return page.page_response(write_docs(app.openapi()).encode(), ".html")

    @router.get("/page.json")
    async def description(request: Request) -> Response:
        model = service.model(*named(request.scope))
        seen = page.describe_page(
            model.manifest, model.served.shown(evidence=CALLER.get().evidence), model.instance.resize
        )
        return json_response({**seen, "models": list(service.models)})

    return router


def _extend_openapi(app: FastAPI, *, keys: bool) -> None:
    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            app.openapi_schema = openapi.add_endpoints(found, keys=keys)
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]
