"""Spans of requests on the real server, taken by the SDK's exporter in memory, and sent to an OTLP endpoint."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import grpc
import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.runtime.serve.live import live, until
from tritonclient.grpc import service_pb2, service_pb2_grpc

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import RecipeError
from s2ap_defend.serve.timeline import Step, server_timing
from s2ap_defend.serve.tracing import Tracer, otlp_tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
CALL = "inference.GRPCInferenceService/ModelInfer"
RAW = {"Inference-Header-Content-Length": "0"}


@pytest.fixture(scope="module")
def server(tiny_model_path):
    staged = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1, executor="staged")
    with live(staged, grpc_port=0, expose_evidence=True, max_batch_rows=4) as server:
        yield server


@pytest.fixture
def spans(server):
    """Finished spans, once there are so many, by name."""
    exporter = InMemorySpanExporter()
    server.service.tracer = Tracer(SimpleSpanProcessor(exporter))

    def found(count: int) -> dict[str, list]:
        until(lambda: len(exporter.get_finished_spans()) >= count)
        names: dict[str, list] = {}
        for span in exporter.get_finished_spans():
            names.setdefault(span.name, []).append(span)
        return names

    yield found
    server.service.tracer = None


def test_a_request_is_a_span_of_its_caller_with_decode_queue_batch_and_stages_below(server, spans, batch):
    headers = {**RAW, "traceparent": TRACEPARENT, "tracestate": "a=1", "X-Request-Id": "mine"}
    answer = httpx.post(f"{server.url}{server.infer}", content=batch[:1].tobytes(), headers=headers)
    assert answer.status_code == 200
    found = spans(5)
    (whole,) = found["POST /v2/models/{model}/infer"]
    assert (whole.kind, f"{whole.context.trace_id:032x}") == (SpanKind.SERVER, TRACE)
    assert (f"{whole.parent.span_id:016x}", whole.context.trace_state["a"]) == (PARENT, "1")
    assert (whole.attributes["s2ap.request_id"], whole.attributes["s2ap.model"]) == ("mine", "tiny")
    assert whole.attributes["http.response.status_code"] == 200
    assert whole.resource.attributes["service.name"] == "s2ap-defend"
    (decode,), (queue,), (run,), stages = (found[name] for name in ("decode", "queue", "batch", "stage"))
    assert {span.parent.span_id for span in (decode, queue, run)} == {whole.context.span_id}
    assert {span.parent.span_id for span in stages} == {run.context.span_id}
    assert whole.start_time <= decode.start_time <= decode.end_time <= queue.start_time <= queue.end_time
    assert queue.end_time <= run.start_time <= run.end_time <= whole.end_time
    assert all(run.start_time <= span.start_time <= span.end_time <= run.end_time for span in stages)
    assert run.attributes["s2ap.rows"] == 1
    assert any("classifier" in span.attributes["s2ap.stages"] for span in stages)


def test_the_parts_of_a_large_request_have_their_batches_and_stages_that_ran_once(server, spans, batch):
    images = np.concatenate([batch, batch, batch[:2]])
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": images.shape, "data": images.ravel().tolist()}]}
    assert httpx.post(f"{server.url}{server.infer}", json=body).status_code == 200
    found = spans(8)
    assert sum(span.attributes["s2ap.rows"] for span in found["batch"]) == 10
    assert len(found["batch"]) == len(found["queue"]) >= 3
    assert found["POST /v2/models/{model}/infer"][0].parent is None


def test_what_fails_by_the_servers_fault_is_an_error_and_what_the_client_did_is_none(server, spans, batch, monkeypatch):
    url = f"{server.url}{server.infer}"
    assert httpx.post(url, content=b"{").status_code == 400

    def fails(_):
        raise RuntimeError("no device")

    instance = server.service.default.instance
    monkeypatch.setattr(instance.classifier.executor, "step", fails)  # and still answers what it has answered before
    assert httpx.post(url, content=batch[:1].tobytes(), headers=RAW).status_code == 500
    clients, servers = spans(5)["POST /v2/models/{model}/infer"]
    assert (clients.attributes["http.response.status_code"], clients.status.status_code) == (400, StatusCode.UNSET)
    assert (servers.attributes["http.response.status_code"], servers.status.status_code) == (500, StatusCode.ERROR)


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.server.grpc.port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def message(server, batch, **changes) -> service_pb2.ModelInferRequest:
    made = service_pb2.ModelInferRequest(**{"model_name": server.service.default.name, **changes})
    made.inputs.add(name="image", datatype="FP32", shape=batch.shape)
    made.raw_input_contents.append(batch.tobytes())
    return made


def test_calls_over_grpc_and_unsampled_callers_are_traced_alike(server, stub, spans, batch):
    for sampled in ("00", "01"):
        stub.ModelInfer(message(server, batch), metadata=(("traceparent", TRACEPARENT[:-2] + sampled),))
    found = spans(5)
    (whole,) = found[CALL]  # the caller of the other one does not want it
    assert (f"{whole.context.trace_id:032x}", f"{whole.parent.span_id:016x}") == (TRACE, PARENT)
    assert (whole.attributes["s2ap.model"], found["batch"][0].attributes["s2ap.rows"]) == ("tiny", 4)
    assert (whole.attributes["rpc.grpc.status_code"], whole.status.status_code) == (0, StatusCode.UNSET)


def test_a_span_over_grpc_has_the_code_of_its_call_which_is_an_error_if_the_server_is_to_blame(
    server, stub, spans, batch, monkeypatch
):
    asked = [message(server, batch), message(server, batch, model_name="another")]
    list(stub.ModelStreamInfer(iter(asked)))  # a stream that ends well, whatever becomes of its requests
    monkeypatch.setattr(server.service, "draining", True)
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(asked[0])
    found = [(one.attributes["rpc.grpc.status_code"], one.status.status_code) for one in spans(6)[CALL]]
    not_found, unavailable = grpc.StatusCode.NOT_FOUND.value[0], grpc.StatusCode.UNAVAILABLE.value[0]
    assert found == [(0, StatusCode.UNSET), (not_found, StatusCode.UNSET), (unavailable, StatusCode.ERROR)]


def test_who_may_see_evidence_sees_in_a_header_where_the_time_went(server, classifier, batch):
    answer = httpx.post(f"{server.url}{server.infer}", content=batch[:1].tobytes(), headers=RAW)
    names = [part.partition(";dur=")[0] for part in answer.headers["server-timing"].split(", ")]
    assert names[:3] == ["decode", "queue", "batch"]
    assert any("classifier" in name for name in names[3:])
    with live(classifier) as closed:
        answer = httpx.post(f"{closed.url}{closed.infer}", content=batch[:1].tobytes(), headers=RAW)
        assert answer.status_code == 200
        assert "server-timing" not in answer.headers


def test_each_of_several_models_is_named_in_its_spans_and_one_that_is_not_there_in_none(tiny_model_path, batch):
    options = {"device": "cpu", "threads": 1, "executor": "staged"}
    constant = DefendedClassifier.load(tiny_model_path, constant_time=True, **options)
    models = {"early": DefendedClassifier.load(tiny_model_path, **options), "all": constant}
    soon = models["early"](batch).members_used.argmin()
    stages = []
    with live(models, expose_evidence=True, max_batch_rows=4) as server:
        exporter = InMemorySpanExporter()
        server.service.tracer = Tracer(SimpleSpanProcessor(exporter))
        for name in (*models, "none"):
            url = f"{server.url}/v2/models/{name}/infer"
            answer = httpx.post(url, content=batch[soon].tobytes(), headers=RAW)
            stages.append([part for part in answer.headers.get("server-timing", "").split(", ") if "member_" in part])
        until(lambda: [span.name for span in exporter.get_finished_spans()].count("POST /v2/models/{model}/infer") == 3)
        whole = [span for span in exporter.get_finished_spans() if span.parent is None]
    assert [span.attributes.get("s2ap.model") for span in whole] == ["early", "all", None]
    early, everything, nothing = stages
    assert len(nothing) == 0 < len(early) < len(everything)


def test_what_happened_twice_is_added_up():
    steps = [Step("queue", 0, 1_000_000), Step("stage", 0, 500, stages="a+b"), Step("queue", 5, 500_005)]
    assert server_timing(steps) == "queue;dur=1.500, a+b;dur=0.001"


class Collector(BaseHTTPRequestHandler):
    """An OTLP endpoint."""

    got: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_spans_go_where_the_environment_says_at_the_latest_when_the_server_stops(classifier, batch, monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "camera-3")
        with live(classifier, otel=True) as server:
            httpx.post(f"{server.url}{server.infer}", content=batch[:1].tobytes(), headers=RAW)
        collector.shutdown()
        thread.join()
    sent = [ExportTraceServiceRequest.FromString(body) for path, body in Collector.got if path == "/v1/traces"]
    resources = [of for message in sent for of in message.resource_spans]
    names = {span.name for of in resources for scope in of.scope_spans for span in scope.spans}
    assert names == {"POST /v2/models/{model}/infer", "decode", "queue", "batch", "stage"}
    said = {one.key: one.value.string_value for of in resources for one in of.resource.attributes}
    assert said["service.name"] == "camera-3"


def test_a_protocol_that_is_not_spoken_is_one_sentence(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(RecipeError, match="is 'http/json', expected one of http/protobuf, grpc"):
        otlp_tracer()
