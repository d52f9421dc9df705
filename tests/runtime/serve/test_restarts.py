"""An engine that fails is found out, started again, and given up after a while; a poisoned image is no such failure."""

import logging
from contextlib import contextmanager

import httpx
import pytest
from tests.runtime.serve.live import live, until

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import EngineError
from s2ap_defend.serve import restarts
from s2ap_defend.serve.restarts import MOST_FAILURES, Restarts


class Failure(DefendedClassifier):
    """A classifier whose engine can be made to fail, on all images or on bright ones."""

    error: type[Exception] | None = None
    only_bright = False

    def __call__(self, images):
        if self.error is not None and (not self.only_bright or images.mean() > 0.9):
            raise self.error("CUDA failure 700: an illegal memory access was encountered")
        return super().__call__(images)


@pytest.fixture(scope="module")
def loaded(tiny_model_path) -> Failure:
    return Failure.load(tiny_model_path, device="cpu", threads=1, executor="whole")


@pytest.fixture
def failing(loaded) -> Failure:
    loaded.error, loaded.only_bright = None, False
    return loaded


@contextmanager
def serving(classifier, **options):
    with live(classifier, drain_delay_s=0, **options) as server, httpx.Client(base_url=server.url) as client:
        yield server, client, server.service.default


def infer(client, server, images) -> tuple[int, str]:
    headers = {"Inference-Header-Content-Length": "0"}
    answer = client.post(server.infer, content=images[:1].tobytes(), headers=headers)
    return answer.status_code, answer.json()["error"] if answer.status_code >= 400 else ""


def states(client) -> tuple[int, int]:
    return client.get("/v2/health/live").status_code, client.get("/v2/health/ready").status_code


def test_an_engine_that_fails_is_started_again_from_the_file(failing, batch, monkeypatch, caplog):
    monkeypatch.setattr(restarts, "FIRST_S", 0.1)

    def fail(_):
        raise SystemExit  # which ends the thread

    with serving(failing, executor="whole") as (server, client, model):
        assert infer(client, server, batch)[0] == 200
        for failures in (1, 2):
            if failures == 1:
                failing.error = EngineError
            else:
                monkeypatch.setattr(model.instance.batcher._device, "_classify", fail)
            status, said = infer(client, server, batch)
            assert (status, said) == (503, "the engine of the model failed and is started again; try again later")
            assert states(client) == (200, 503)
            status, said = infer(client, server, batch)
            assert (status, said) == (503, "the engine of model 'tiny' failed and is started again; try again later")
            (indexed,) = client.post("/v2/repository/index").json()
            assert (indexed["state"], indexed["reason"]) == ("UNAVAILABLE", "broken")
            until(lambda: model.state == "ready")
            assert infer(client, server, batch)[0] == 200
            assert states(client) == (200, 200)
            text = client.get("/metrics").text
            assert f's2ap_engine_failures_total{{model="tiny",version="1"}} {failures}.0' in text
            assert 's2ap_model_ready{model="tiny",version="1"} 1.0' in text
            until(lambda: len(model._instances) == 1)
    assert "the engine of model tiny failed: CUDA failure 700" in caplog.text
    assert "the engine of model tiny failed: the thread of the device ended: SystemExit" in caplog.text


def test_an_engine_that_fails_wave_by_wave_is_started_again_too(tiny_model_path, batch, monkeypatch):
    monkeypatch.setattr(restarts, "FIRST_S", 0.01)
    staged = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1, executor="staged")

    def fail(_):
        raise EngineError("CUDA failure 700")

    with serving(staged, executor="staged") as (server, client, model):
        monkeypatch.setattr(staged.executor._stages, "ask", fail)
        assert infer(client, server, batch)[0] == 503
        until(lambda: model.state == "ready")
        assert infer(client, server, batch)[0] == 200


def test_an_image_on_which_the_model_fails_fails_alone_and_breaks_nothing(failing, batch):
    with serving(failing) as (server, client, model):
        failing.error, failing.only_bright = EngineError, True
        status, said = infer(client, server, batch * 0 + 1)
        assert status == 500
        assert said.startswith("the model failed on this request; the server's log says why, at request_id ")
        assert infer(client, server, batch)[0] == 200
        assert (model.state, states(client)) == ("ready", (200, 200))
        assert 's2ap_engine_failures_total{model="tiny",version="1"} 0.0' in client.get("/metrics").text


def test_an_engine_that_cannot_be_started_is_given_up_and_can_be_loaded_again(
    tmp_path, tiny_model_path, batch, monkeypatch, caplog
):
    monkeypatch.setattr(restarts, "FIRST_S", 0.001)
    caplog.set_level(logging.INFO)
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_model_path.read_bytes())
    failing = Failure.load(path, device="cpu", threads=1, executor="whole")
    with serving(failing, allow_load=True) as (server, client, model):
        path.unlink()
        failing.error = EngineError
        assert infer(client, server, batch)[0] == 503
        until(lambda: model.state == "failed")
        assert states(client) == (503, 503)
        said = f"the model failed {MOST_FAILURES + 1} times and is not started again; the log says why"
        assert infer(client, server, batch) == (503, said)
        assert caplog.text.count("could not be started") == MOST_FAILURES
        assert f"model tiny: {said}" in caplog.text
        path.write_bytes(tiny_model_path.read_bytes())
        assert client.post("/v2/repository/models/tiny/load").status_code == 200
        assert states(client) == (200, 200)
        assert infer(client, server, batch)[0] == 200


def test_waits_grow_up_to_a_bound_and_a_steady_engine_begins_a_new_row():
    now = 0.0
    found = Restarts(clock=lambda: now)
    waits = [found.failed() for _ in range(MOST_FAILURES + 1)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, None]
    found = Restarts(clock=lambda: now)
    found.ready()
    assert found.failed() == 0.5
    now += 1000.0  # a start that takes long is no time in which it answered
    assert found.failed() == 1.0
    found.ready()
    now += 299.0
    assert found.failed() == 2.0
    found.ready()
    now += 301.0
    assert found.failed() == 0.5
