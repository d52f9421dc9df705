"""A client of the application without a server between, and what its tests say of answers."""

import asyncio

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from s2ap_defend.serve import ServerConfig, create_app


async def until_warm(service) -> None:
    """Wait for the end of a warm-up, whatever it was."""
    async with asyncio.timeout(60):
        while service.state == "starting":
            await asyncio.sleep(0.001)


class Client:
    """Requests to an application on an event loop of its own; what the application starts runs during them."""

    def __init__(self, app) -> None:
        self.app = app
        self._runner = asyncio.Runner()
        self._http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://server"
        )

    def __enter__(self):
        self._lifespan = self.app.router.lifespan_context(self.app)
        self._runner.run(self._open())
        return self

    def __exit__(self, *_) -> None:
        self._runner.run(self._close())
        self._runner.close()

    def request(self, method, path, **options) -> httpx.Response:
        return self._runner.run(self._http.request(method, path, **options))

    def get(self, path, **options) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path, **options) -> httpx.Response:
        return self.request("POST", path, **options)

    async def _open(self) -> None:
        await self._lifespan.__aenter__()
        await until_warm(self.app.state.service)

    async def _close(self) -> None:
        await self._http.aclose()
        await self._lifespan.__aexit__(None, None, None)


def serving(classifier, **options) -> Client:
    return Client(create_app(classifier, ServerConfig(model=classifier.path, **options)))


def infer(client, images, path=None, **changes):
    tensor = {"name": "image", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    model = client.app.state.service.default.served.model
    return client.post(path or f"/v2/models/{model}/infer", json={"inputs": [tensor], **changes})


def tensors(response) -> dict[str, np.ndarray]:
    assert response.status_code == 200, response.text
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in response.json()["outputs"]}


async def in_chunks(*chunks):
    for chunk in chunks:
        yield chunk


def assert_error(response, status: int, text: str) -> None:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert text in response.json()["error"]


def scrape(client) -> dict[str, dict[tuple[str, ...], float]]:
    text = client.get("/metrics").text
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = tuple(value for label, value in sorted(sample.labels.items()) if label not in {"model", "version"})
            found.setdefault(sample.name, {})[key] = sample.value
    return found
