"""Several models in one process: each under its name, over HTTP and gRPC, with metrics and health of its own."""

from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from tests.runtime.serve.live import live, until
from tritonclient.utils import InferenceServerException

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.commands.options import named_models
from s2ap_defend.errors import RecipeError
from s2ap_defend.serve import ServerConfig
from s2ap_defend.serve.classify import encode_png

PUBLIC = ("label", "adversarial", "abstained")


@pytest.fixture(scope="module")
def other(abstaining_model_path) -> DefendedClassifier:
    return DefendedClassifier.load(abstaining_model_path, device="cpu", threads=1)


@pytest.fixture(scope="module")
def server(classifier, other):
    with live({"first": classifier, "second": other}, grpc_port=0, drain_delay_s=0, allow_load=True) as server:
        yield server


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture
def triton(server):
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture
def triton_grpc(server):
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.server.grpc.port}") as client:
        yield client


def tensor(kind, images):
    made = kind.InferInput("image", list(images.shape), "FP32")
    made.set_data_from_numpy(images)
    return made


def test_each_model_answers_under_its_name(triton, triton_grpc, classifier, other, random_images):
    images = random_images[:16]
    assert (classifier(images).abstained != other(images).abstained).any()
    for name, expected in (("first", classifier(images)), ("second", other(images))):
        for client, kind in ((triton, tritonclient.http), (triton_grpc, tritonclient.grpc)):
            answer = client.infer(name, [tensor(kind, images)], model_version="1")
            for output in PUBLIC:
                np.testing.assert_array_equal(answer.as_numpy(output), getattr(expected, output))
        assert triton.is_model_ready(name)
        assert triton_grpc.is_model_ready(name)
        assert triton.get_model_metadata(name)["name"] == name
        assert triton_grpc.get_model_config(name).config.name == name
    assert [one["name"] for one in triton.get_inference_statistics()["model_stats"]] == ["first", "second"]
    assert [one.name for one in triton_grpc.get_inference_statistics().model_stats] == ["first", "second"]
    with pytest.raises(InferenceServerException, match="no model 'third'; this server has 'first', 'second'"):
        triton.infer("third", [tensor(tritonclient.http, images)])


def test_the_first_is_asked_where_a_request_names_none(http, classifier, other, random_images):
    expected = {None: classifier(random_images), "second": other(random_images)}
    row = int((expected[None].abstained != expected["second"].abstained).argmax())
    image = np.rint(random_images[row : row + 1] * 255) / np.float32(255)
    for name, model in ((None, classifier), ("first", classifier), ("second", other)):
        query = {} if name is None else {"model": name}
        (answer,) = http.post("/classify", params=query, content=encode_png(image[0])).json()["images"]
        verdict = model(image)
        assert (answer["label"], answer["abstained"]) == (verdict.label[0], verdict.abstained[0])
        page = http.get("/page.json", params=query).json()
        assert (page["model"], page["models"]) == (name or "first", ["first", "second"])
    assert http.post("/classify", params={"model": "third"}, content=b"x").status_code == 404


def test_metrics_say_which_model_they_are_of(http, classifier, random_images):
    def requests() -> dict[str, float]:
        return {
            sample.labels["model"]: sample.value
            for family in text_string_to_metric_families(http.get("/metrics").text)
            for sample in family.samples
            if sample.name == "s2ap_inference_requests_total"
            and (sample.labels["protocol"], sample.labels["outcome"]) == ("http", "success")
        }

    before = requests()
    for name, times in (("first", 1), ("second", 2)):
        for _ in range(times):
            headers = {"Inference-Header-Content-Length": "0"}
            path = f"/v2/models/{name}/infer"
            assert http.post(path, content=random_images[0].tobytes(), headers=headers).status_code == 200
    assert {name: count - before[name] for name, count in requests().items()} == {"first": 1, "second": 2}


def test_a_model_is_unloaded_and_loaded_while_the_other_one_serves(http, triton, triton_grpc, server, random_images):
    def states() -> list[tuple[str, str]]:
        return [(one["name"], one["state"]) for one in triton.get_model_repository_index()]

    def serving(name: str) -> bool:
        with tritonclient.grpc.grpc.insecure_channel(f"127.0.0.1:{server.server.grpc.port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
        return check.status == health_pb2.HealthCheckResponse.SERVING

    for client, kind in ((triton, tritonclient.http), (triton_grpc, tritonclient.grpc)):
        assert states() == [("first", "READY"), ("second", "READY")]
        client.unload_model("second")
        assert states() == [("first", "READY"), ("second", "UNAVAILABLE")]
        assert [one.name for one in triton_grpc.get_model_repository_index().models] == ["first", "second"]
        assert not client.is_model_ready("second")
        assert client.is_server_ready()
        assert (serving("first"), serving("second"), serving("")) == (True, False, True)
        with pytest.raises(InferenceServerException, match="model 'second' is unloaded; load it"):
            client.infer("second", [tensor(kind, random_images[:1])])
        assert client.infer("first", [tensor(kind, random_images[:1])]) is not None
        client.load_model("second")
        assert client.infer("second", [tensor(kind, random_images[:1])]) is not None
    (gauge,) = (
        family
        for family in text_string_to_metric_families(http.get("/metrics").text)
        if family.name == "s2ap_model_ready"
    )
    assert [sample.value for sample in gauge.samples] == [1.0, 1.0]


def test_what_a_load_does_not_take_is_said(triton, triton_grpc):
    for client in (triton, triton_grpc):
        with pytest.raises(InferenceServerException, match="'config' is not taken: replace the model's file"):
            client.load_model("second", config="{}")
        with pytest.raises(InferenceServerException, match="there is no model 'third'"):
            client.load_model("third")
        with pytest.raises(InferenceServerException, match="there is no model 'third'"):
            client.unload_model("third")


def test_nobody_loads_models_where_nobody_said_so(classifier):
    with live(classifier, grpc_port=0, drain_delay_s=0) as server, httpx.Client(base_url=server.url) as client:
        name = classifier.path.stem
        answer = client.post(f"/v2/repository/models/{name}/load")
        assert (answer.status_code, answer.json()["error"][:40]) == (403, "this server lets nobody load or unload m")
        with (
            tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.server.grpc.port}") as asking,
            pytest.raises(InferenceServerException, match="start it with --allow-load"),
        ):
            asking.unload_model(name)
        for body, said in ((b"[]", "must be a JSON object"), (b"{", "is not valid JSON"), (b" " * 5000, "takes 4096")):
            answer = client.post("/v2/repository/index", content=body)
            assert said in answer.json()["error"]
        assert client.post("/v2/repository/index", json={"ready": True}).json()[0]["state"] == "READY"


def test_the_bytes_that_wait_are_limited_for_all_models_together(classifier, other):
    limits = {"max_queue_bytes": 2048, "max_body_bytes": 1024}
    with live({"first": classifier, "second": other}, **limits) as server:
        first, second = (server.service.models[name].instance.batcher for name in ("first", "second"))
        images = np.zeros((5, 1, 8, 8), np.float32)

        def fill() -> None:
            first.enqueue(images)
            try:
                second.enqueue(images)
            except Exception as error:
                said.append(str(error))
            for ticket in list(first._queue):
                first.release(ticket)
            done.append(second.queued_bytes)

        said, done = [], []
        server.server._loop.call_soon_threadsafe(fill)
        until(lambda: done)
        assert done == [0]
        assert "images wait already" in said[0]


def test_every_stage_has_run_on_every_size_of_batch_before_the_model_is_ready(tiny_model_path):
    staged = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1, executor="staged")
    with live(staged, max_batch_rows=5):
        times = staged.executor.times()
    assert len(times) > 2
    assert all(time.rows >= 1 + 2 + 4 + 5 for time in times.values())


def test_files_are_named_by_their_stems_or_as_they_are_told(tmp_path):
    equal = tmp_path / "a=b.onnx"
    equal.touch()
    given = ["one/model.onnx", "mine=two/model.onnx", str(equal)]
    expected = {"model": Path("one/model.onnx"), "mine": Path("two/model.onnx"), "a=b": equal}
    assert named_models(given) == expected
    with pytest.raises(RecipeError, match="are both called 'model'; name one of them: NAME=two/model"):
        named_models(["one/model.onnx", "two/model.onnx"])
    for name in ("", "a/b", "x" * 129):
        with pytest.raises(RecipeError, match="cannot be the name of a model"):
            ServerConfig(model={name: Path("model.onnx")})
    with pytest.raises(RecipeError, match="no model file is given"):
        ServerConfig(model={})
