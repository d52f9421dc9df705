"""The application under load and in trouble: readiness, full queues, deadlines, clients that leave, failing models."""

import asyncio
import json
from contextlib import asynccontextmanager

import numpy as np
import pytest
from tests.runtime.serving_client import assert_error, infer, scrape, serving, tensors, until_warm

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import RecipeError
from s2ap_defend.serve import ServerConfig, create_app

CHUNK = {"type": "http.request", "body": b"", "more_body": True}


@asynccontextmanager
async def application(classifier, **options):
    """The application without a server between: `call` takes ASGI messages and gives status, headers and JSON."""
    app = create_app(classifier, ServerConfig(model=classifier.path, **options))
    service = app.state.service

    async def call(path, body=b"", *, method="POST", headers=(), receive=None):
        sent = []
        raw = {"content-length": str(len(body)), **dict(headers)}

        async def once():
            if sent_body:
                await asyncio.Event().wait()
            sent_body.append(True)
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        sent_body: list[bool] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(key.encode(), value.encode()) for key, value in raw.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }
        await app(scope, receive or once, send)
        if not sent:
            return None
        return sent[0]["status"], dict(sent[0]["headers"]), json.loads(b"".join(part["body"] for part in sent[1:]))

    async with app.router.lifespan_context(app):
        yield service, call


def message(images: np.ndarray, **parameters) -> bytes:
    tensor = {"name": "image", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


def test_it_is_alive_but_not_ready_before_the_model_is_warm(held, batch, name):
    async def scenario():
        async with application(held) as (service, call):
            assert (await call("/v2/health/live", method="GET"))[0] == 200
            for path in ("/v2/health/ready", f"/v2/models/{name}/ready"):
                status, headers, answer = await call(path, method="GET")
                assert (status, answer) == (503, {"error": "the model is not ready yet"})
                assert b"retry-after" in headers
            assert (await call(f"/v2/models/{name}/infer", message(batch)))[0] == 503
            held.gate.set()
            await until_warm(service)
            assert (await call("/v2/health/ready", method="GET"))[0] == 200
            assert (await call(f"/v2/models/{name}/infer", message(batch)))[0] == 200

    asyncio.run(scenario())


def test_a_draining_server_is_not_ready_but_still_answers(classifier, batch, name):
    async def scenario():
        async with application(classifier) as (service, call):
            await until_warm(service)
            service.drain()
            assert (await call("/v2/health/ready", method="GET"))[::2] == (503, {"error": "the server is stopping"})
            assert (await call("/v2/health/live", method="GET"))[0] == 200
            assert (await call(f"/v2/models/{name}/infer", message(batch)))[0] == 200

    asyncio.run(scenario())


@asynccontextmanager
async def busy(held, batch, name, **options):
    """An application whose device is held inside a batch."""
    async with application(held, **options) as (service, call):
        held.gate.set()
        await until_warm(service)
        held.gate.clear()
        first = asyncio.ensure_future(call(f"/v2/models/{name}/infer", message(batch[:1])))
        while service.default.instance.batcher.pending_rows == 0 or service.default.instance.batcher.queued_rows:
            await asyncio.sleep(0.001)
        yield service, call
        held.gate.set()
        assert (await first)[0] == 200


def test_a_full_queue_answers_429_with_retry_after(held, batch, name):
    async def scenario():
        async with busy(held, batch, name, max_batch_rows=2, max_queue_rows=4) as (service, call):
            waiting = asyncio.ensure_future(call(f"/v2/models/{name}/infer", message(batch)))
            while service.default.instance.batcher.queued_rows < 4:
                await asyncio.sleep(0.001)
            status, headers, answer = await call(f"/v2/models/{name}/infer", message(batch[:1]))
            assert (status, headers[b"retry-after"]) == (429, b"1")
            assert list(answer) == ["error"]
            held.gate.set()
            assert (await waiting)[0] == 200

    asyncio.run(scenario())


def test_a_deadline_in_microseconds_answers_504_while_the_device_is_busy(held, batch, name):
    async def scenario():
        async with busy(held, batch, name) as (service, call):
            status, _, answer = await call(f"/v2/models/{name}/infer", message(batch, timeout=300_000))
            assert (status, list(answer)) == (504, ["error"])
            assert not held.gate.is_set()
            assert service.default.instance.batcher.queued_rows == 0

    asyncio.run(scenario())


def test_a_client_that_leaves_gives_back_its_place_in_the_queue(held, batch, name):
    async def scenario():
        async with busy(held, batch, name) as (service, call):
            body = message(batch)
            messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]

            async def receive():
                await asyncio.sleep(0)
                return messages.pop(0)

            headers = {"content-length": str(len(body))}
            assert await call(f"/v2/models/{name}/infer", headers=headers, receive=receive) is None
            assert service.default.instance.batcher.queued_rows == 0
            assert service.receiving.total == 0

    asyncio.run(scenario())


def test_a_body_that_announces_too_much_is_refused_before_it_is_read(classifier, name):
    async def scenario():
        async def receive():
            raise AssertionError("the body was read")

        async with application(classifier) as (service, call):
            await until_warm(service)
            headers = {"content-length": str(10**12), "expect": "100-continue"}
            status, answered, answer = await call(f"/v2/models/{name}/infer", headers=headers, receive=receive)
            assert (status, answered[b"connection"]) == (413, b"close")
            assert "1000000000000 bytes" in answer["error"]

    asyncio.run(scenario())


def test_a_body_that_does_not_come_answers_408(classifier, name):
    async def scenario():
        async def receive():
            await asyncio.sleep(0.01)
            return CHUNK

        async with application(classifier, body_timeout_s=0.05) as (service, call):
            await until_warm(service)
            headers = {"content-length": "1000"}
            status, answered, answer = await call(f"/v2/models/{name}/infer", headers=headers, receive=receive)
            assert (status, answered[b"connection"]) == (408, b"close")
            assert answer == {"error": "the body did not arrive within 0.05 s"}
            assert service.receiving.total == 0

    asyncio.run(scenario())


class BrokenClassifier(DefendedClassifier):
    """A defended classifier that fails on bright images."""

    def __call__(self, images):
        if images.mean() > 0.9:
            raise ValueError("secret internals")
        return super().__call__(images)


def test_a_model_that_fails_answers_500_without_its_internals_and_serves_on(tiny_model_path, batch):
    broken = BrokenClassifier.load(tiny_model_path, device="cpu", threads=1, executor="whole")
    with serving(broken) as client:
        assert_error(infer(client, np.ones_like(batch)), 500, "the model failed on this request")
        assert "secret" not in infer(client, np.ones_like(batch[:1])).text
        assert len(tensors(infer(client, batch))["label"]) == 4
        assert scrape(client)["s2ap_inference_requests_total"]["error", "http"] == 2


def test_a_bug_in_the_server_answers_500_as_an_error_object(classifier, batch):
    with serving(classifier) as client:
        client.app.state.service.default.instance.classifier = client.app.state.service.default.manifest = None
        assert_error(infer(client, batch), 500, "the server failed on this request")
        assert_error(client.get("/page.json"), 500, "the server failed on this request")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"host": "0.0.0.0"}, "put a proxy that checks who is asking in front of 127.0.0.1"),  # noqa: S104
        ({"host": "example.org"}, "accept the risk with --insecure"),
        ({"host": "::"}, "can be reached by other machines"),
        ({"port": 70000}, "port 70000 does not exist"),
        ({"max_batch_rows": 0}, "max_batch_rows is 0"),
        ({"max_queue_rows": 1}, "a full batch must fit into the queue"),
        ({"max_connections": 1}, "max_connections is 1, expected at least 2"),
        ({"max_body_bytes": 10**9}, "a peer may have half of the bytes"),
        ({"allowed_hosts": ("example.org:80",)}, "allowed host 'example.org:80' is no name; give it without a port"),
        ({"allowed_hosts": ("::1",)}, "IPv6 addresses in brackets"),
        ({"grace_s": -1.0}, "grace_s is -1.0"),
    ],
)
def test_settings_that_cannot_work_or_are_not_safe_are_refused(tmp_path, options, text):
    with pytest.raises(RecipeError) as caught:
        ServerConfig(model=tmp_path / "model.onnx", **options)
    assert text in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_are_safe(tmp_path, host):
    assert ServerConfig(model=tmp_path / "model.onnx", host=host).host == host
    assert ServerConfig(model=tmp_path / "model.onnx", host="0.0.0.0", insecure=True).insecure  # noqa: S104
