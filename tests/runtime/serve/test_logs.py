"""The log: lines of JSON, request ids on everything, and nobody who waits for who reads it."""

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import httpx
import pytest
from tests.runtime.serve.key_files import Ring
from tests.runtime.serve.live import live, read_answer, until
from tritonclient.grpc import service_pb2, service_pb2_grpc

from s2ap_defend.serve.exchange import named
from s2ap_defend.serve.logs import JsonFormatter, QueuedHandler, TextFormatter

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("name", ["a", "42", "req-1", "f" * 128, "A_b.c:d/e+f=@g"])
def test_the_clients_name_of_a_request_is_taken(name):
    assert named([(b"x-request-id", name.encode())]).id == name


@pytest.mark.parametrize(
    "names", [[b""], [b"a" * 129], [b"a b"], [b"a\r\nx: y"], [b'a"'], [b"-a"], [b"\xc3\xa9"], [b"a", b"b"], []]
)
def test_any_other_name_is_replaced_by_a_random_one(names):
    made = {named([(b"x-request-id", name) for name in names]).id for _ in range(2)}
    assert [len(name) for name in made] == [32, 32]


@pytest.mark.parametrize(
    ("sent", "trace"),
    [
        ([PARENT], "0af7651916cd43dd8448eb211c80319c"),
        ([PARENT.replace("00-", "cc-", 1) + "-what-is-to-come"], "0af7651916cd43dd8448eb211c80319c"),
        ([PARENT + "-x"], None),
        ([PARENT.replace("00-", "ff-", 1)], None),
        ([PARENT.upper()], None),
        ([PARENT[:-1]], None),
        ([f"00-{'0' * 32}-b7ad6b7169203331-01"], None),
        ([f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01"], None),
        ([PARENT, PARENT], None),
        ([], None),
    ],
)
def test_a_trace_is_taken_from_a_valid_traceparent_alone(sent, trace):
    headers = [*((b"traceparent", one.encode()) for one in sent), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    exchange = named(headers)
    assert exchange.trace_id == trace
    assert exchange.tracestate == ("a=1,b=2" if trace else "")


def record(message="a\nline", **extra) -> logging.LogRecord:
    try:
        raise ValueError("not seven")
    except ValueError:
        made = logging.LogRecord("a.b", logging.ERROR, "", 0, message, (), sys.exc_info())
    made.__dict__.update(extra)
    return made


def test_a_line_of_json_is_one_line_and_has_all_of_it():
    text = JsonFormatter().format(record(request_id="r1", fields={"status": 200}))
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["logger"], line["message"]) == ("error", "a.b", "a\nline")
    assert (line["request_id"], line["status"]) == ("r1", 200)
    assert line["exception"].endswith("ValueError: not seven")


def test_a_line_of_text_ends_with_the_request_before_the_traceback():
    line, *rest = TextFormatter().format(record("failed", request_id="r1")).splitlines()
    assert line.endswith(" ERROR failed request_id=r1")
    assert rest[-1] == "ValueError: not seven"


def test_who_logs_never_waits_and_what_is_dropped_is_counted_and_said():
    go, written, dropped = threading.Event(), [], []

    def write(line: bytes) -> None:
        assert go.wait(20)
        written.append(line)

    handler = QueuedHandler(write, most=10)
    handler.on_drop = lambda: dropped.append(1)
    for number in range(100):
        handler.handle(logging.LogRecord("a", logging.INFO, "", 0, f"line {number}", (), None))
    assert handler.dropped == len(dropped) == pytest.approx(89, abs=1)  # one may be in the thread's hands
    go.set()
    handler.finish(20)
    assert f"{handler.dropped} records of this log were dropped" in b"".join(written).decode()
    assert [line for line in written if b"line" in line][:10] == [b"line %d\n" % number for number in range(10)]


def test_a_log_that_cannot_be_written_is_counted_and_stops_nobody():
    def write(_: bytes) -> None:
        raise BrokenPipeError

    handler = QueuedHandler(write)
    for _ in range(3):
        handler.handle(logging.LogRecord("a", logging.INFO, "", 0, "lost", (), None))
    handler.handle(logging.LogRecord("a", logging.INFO, "", 0, "%d", ("no number",), None))
    handler.finish(20)
    assert handler.dropped == 4


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return Ring(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def server(whole, keys):
    with live(whole, access_log=True, grpc_port=0, keys=keys.path, head_timeout_s=5.0) as server:
        yield server


@pytest.fixture
def lines(caplog):
    """Fields of the lines of the access log; a request's is there soon after its answer."""
    caplog.set_level(logging.INFO, "s2ap_defend.serve.access_log")

    def found(count: int) -> list[dict]:
        until(lambda: len(caplog.records) >= count)
        return [{**one.fields, "request_id": one.request_id} for one in caplog.records]

    return found


def test_every_request_is_a_line_with_the_id_that_its_answer_carries(server, keys, lines, batch):
    mine = {"X-Request-Id": "mine-1", "traceparent": PARENT, "Authorization": f"Bearer {keys.tokens['asker']}"}
    with httpx.Client(base_url=server.url) as client:
        infer = {"Inference-Header-Content-Length": "0"}
        answers = [
            client.post(server.infer, content=batch[:1].tobytes(), headers={**mine, **infer}),
            client.get("/v2", headers={"X-Request-Id": "not sane"}),
            client.post("/classify?timeout=1", content=b"no image", headers=mine),
            client.get("/v2/health/live"),
        ]
    found = lines(4)
    assert [(line["method"], line["path"], line["status"], line["key"]) for line in found] == [
        ("POST", server.infer, 200, "asker"),
        ("GET", "/v2", 401, None),
        ("POST", "/classify", 400, "asker"),
        ("GET", "/v2/health/live", 200, None),
    ]
    assert [line["request_id"] for line in found] == [answer.headers["x-request-id"] for answer in answers]
    assert [line["request_id"] == "mine-1" for line in found] == [True, False, True, False]
    assert [line["trace_id"] for line in found] == [PARENT[3:35], None, PARENT[3:35], None]
    assert all(line["peer"] == "127.0.0.1" and line["protocol"] == "http" for line in found)
    assert all(0.0 < line["duration_ms"] < 20_000 for line in found)


def test_a_proxy_on_this_machine_says_who_asks_and_nobody_else_does(server, lines):
    heads = {"127.0.0.1": b"X-Forwarded-For: 198.51.100.7\r\n", "127.0.0.2": b"X-Forwarded-For: 198.51.100.8\r\n"}
    for peer, head in heads.items():
        with server.connect(peer) as connection:
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
            assert read_answer(connection)[0] == 200
    assert [line["peer"] for line in lines(2)] == ["198.51.100.7", "127.0.0.2"]


def test_what_no_application_sees_has_an_id_and_a_line_too(server, lines):
    with server.connect() as connection:
        connection.sendall(b"this is no request\r\n\r\n")
        status, headers, _ = read_answer(connection)
    (line,) = lines(1)
    assert (status, line["status"], line["path"]) == (400, 400, "-")
    assert line["request_id"] == headers["x-request-id"]


def test_a_client_that_goes_before_its_answer_is_a_line_without_a_status(server, keys, lines, batch):
    with server.connect() as connection:
        connection.sendall(server.raw(batch, f"X-API-Key: {keys.tokens['asker']}")[:-1])
    (line,) = lines(1)
    assert (line["path"], line["status"]) == (server.infer, None)


def test_calls_over_grpc_are_lines_and_carry_the_id_in_their_trailing_metadata(server, keys, lines, batch):
    key = ("authorization", f"Bearer {keys.tokens['asker']}")
    message = service_pb2.ModelInferRequest(
        model_name=server.service.default.name, raw_input_contents=[batch[:1].tobytes()]
    )
    message.inputs.add(name="image", datatype="FP32", shape=batch[:1].shape)
    with grpc.insecure_channel(f"127.0.0.1:{server.server.grpc.port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        _, call = stub.ModelInfer.with_call(message, metadata=(key, ("x-request-id", "g1"), ("traceparent", PARENT)))
        said = [dict(call.trailing_metadata())]
        for name, metadata in (("g2", (key,)), ("g3", ())):
            message.model_name = "other"
            with pytest.raises(grpc.RpcError) as raised:
                stub.ModelInfer(message, metadata=(*metadata, ("x-request-id", name)))
            said.append(dict(raised.value.trailing_metadata()))
        stream = stub.ModelStreamInfer(iter([message]), metadata=(key, ("x-request-id", "g4")))
        assert "there is no model" in next(stream).error_message
        assert list(stream) == []
        said.append(dict(stream.trailing_metadata()))
    found = lines(4)
    assert [one["x-request-id"] for one in said] == [line["request_id"] for line in found] == ["g1", "g2", "g3", "g4"]
    assert [line["status"] for line in found] == ["OK", "NOT_FOUND", "UNAUTHENTICATED", "OK"]
    assert [line["key"] for line in found] == ["asker", "asker", None, "asker"]
    assert found[0]["trace_id"] == PARENT[3:35]
    assert found[0]["path"] == "/inference.GRPCInferenceService/ModelInfer"
    assert {line["protocol"] for line in found} == {"grpc"}


def test_an_answer_that_failed_names_the_line_of_the_log_that_says_why(server, keys, caplog, batch, monkeypatch):
    device = server.service.default.instance.batcher._device
    answers = device._classify

    def fails(images):
        if images is device.known:  # otherwise it would be started again
            return answers(images)
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr(device, "_classify", fails)
    headers = {"X-Request-Id": "hot", "X-API-Key": keys.tokens["asker"], "Inference-Header-Content-Length": "0"}
    answer = httpx.post(f"{server.url}{server.infer}", content=batch[:1].tobytes(), headers=headers)
    assert answer.status_code == 500
    assert answer.json()["error"].endswith("the server's log says why, at request_id hot")
    assert [r for r in caplog.records if "a request failed: the model failed: RuntimeError" in r.getMessage()]
    assert "the device is on fire" in caplog.text


def test_a_bug_is_one_json_error_and_its_traceback_is_in_the_log(server, keys, caplog, monkeypatch):
    monkeypatch.setattr(server.service.default, "check_ready", lambda: 1 / 0)
    headers = {"X-Request-Id": "bug", "X-API-Key": keys.tokens["asker"]}
    answer = httpx.post(f"{server.url}{server.infer}", content=b"", headers=headers)
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server failed on this request; the server's log says why, at request_id bug"}
    assert answer.headers["x-request-id"] == "bug"
    assert "ZeroDivisionError" in caplog.text


def test_a_server_whose_log_nobody_reads_serves_on_and_writes_all_of_it_later(tiny_model_path):
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, b"x" * 4096)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--device", "cpu", "--threads", "1", "--log-format", "json", "--access-log", "--port", str(port)]
    command = [sys.executable, "-m", "s2ap_defend", "serve", str(tiny_model_path), *options, "--drain-delay", "0"]
    with subprocess.Popen(command, stderr=writing) as process, httpx.Client() as client, os.fdopen(reading) as log:
        os.close(writing)
        try:
            until(lambda: is_ready(client, port))
            for _ in range(20):
                assert client.get(f"http://127.0.0.1:{port}/v2").status_code == 200
            assert log.read(4096) == "x" * 4096  # from now on somebody reads
            process.send_signal(signal.SIGTERM)
            lines = [json.loads(line) for line in log]
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert len([line for line in lines if line.get("path") == "/v2" and line["status"] == 200]) == 20
    assert [line["message"] for line in lines if line["logger"] == "s2ap_defend.serve.server"][-1] == "stopped"
    assert not [line for line in lines if line["message"] == "stopped" and "request_id" in line]


def is_ready(client: httpx.Client, port: int) -> bool:
    time.sleep(0.1)
    try:
        return client.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_dropped_lines_are_counted_in_the_metrics(server, keys):
    server.service.metrics.count_dropped()
    lines = httpx.get(f"{server.url}/metrics", headers=keys.bearer("operator")).text.splitlines()
    assert "s2ap_log_records_dropped_total 1.0" in lines
