"""The real server in its own process, and a client that we did not write."""

import gzip
import re
import resource
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.runtime.running_server import running
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.commands.main import run
from s2ap_defend.errors import RecipeError
from s2ap_defend.serve.server import listen

THREADS = 8
REQUESTS = 6


@pytest.fixture(scope="module")
def server(tiny_model_path):
    with running(tiny_model_path, "--expose-evidence") as server:
        yield server


@pytest.fixture
def triton(server):
    with InferenceServerClient(server.address) as client:
        yield client


def tensor(images, binary: bool) -> InferInput:
    made = InferInput("image", list(images.shape), np_to_triton_dtype(images.dtype))
    made.set_data_from_numpy(images, binary_data=binary)
    return made


def test_tritonclient_finds_the_server_and_its_model(triton, tiny_model_path):
    name = tiny_model_path.stem
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(name, "1")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    assert triton.get_model_metadata(name)["inputs"][0]["shape"] == [-1, 1, 8, 8]
    assert triton.get_model_config(name)["max_batch_size"] == 32
    assert triton.get_inference_statistics(name)["model_stats"][0]["name"] == name
    assert not triton.is_model_ready("other")


@pytest.mark.parametrize(("dtype", "scale"), [(np.float16, 1), (np.uint8, np.float32(255))])
def test_tritonclient_sends_other_datatypes(triton, tiny_model_path, dtype, scale):
    classifier = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)
    images = (np.random.default_rng(3).random((3, *classifier.input_shape)) * scale).astype(dtype)
    answer = triton.infer(tiny_model_path.stem, [tensor(images, binary=True)])
    expected = classifier(images.astype(np.float32) / scale)
    np.testing.assert_array_equal(answer.as_numpy("votes"), expected.votes)
    np.testing.assert_array_equal(answer.as_numpy("purified"), expected.purified)


def test_eight_threads_at_once_each_get_exactly_their_own_rows(server, tiny_model_path):
    classifier = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)
    rng = np.random.default_rng(1)
    work = [
        [rng.random((int(rows), *classifier.input_shape), dtype=np.float32) for rows in rng.integers(1, 9, REQUESTS)]
        for _ in range(THREADS)
    ]
    start = threading.Barrier(THREADS)

    def one_thread(number: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        binary = number % 2 == 0
        wanted = [
            InferRequestedOutput(name, binary_data=binary) for name in ("label", "adversarial", "reconstruction_error")
        ]
        with InferenceServerClient(server.address) as client:
            start.wait()
            answers = [client.infer(tiny_model_path.stem, [tensor(x, binary)], outputs=wanted) for x in work[number]]
        return [tuple(answer.as_numpy(output.name()) for output in wanted) for answer in answers]

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(one_thread, range(THREADS)))
    for requests, answers in zip(work, found, strict=True):
        for images, (label, adversarial, error) in zip(requests, answers, strict=True):
            expected = classifier(images)
            np.testing.assert_array_equal(label, expected.label)
            np.testing.assert_array_equal(adversarial, expected.adversarial)
            np.testing.assert_allclose(error, expected.reconstruction_error, rtol=1e-4)  # differs from row to row


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_reads_all_outputs_in_every_encoding(triton, tiny_model_path, binary, compression):
    classifier = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)
    images = np.random.default_rng(2).random((3, *classifier.input_shape), dtype=np.float32)
    answer = triton.infer(
        tiny_model_path.stem,
        [tensor(images, binary)],
        request_id="mine",
        timeout=20_000_000,
        priority=1,
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    expected = classifier(images)
    assert answer.get_response()["id"] == "mine"
    for name in expected.FIELDS:
        np.testing.assert_allclose(answer.as_numpy(name), getattr(expected, name), rtol=1e-5, atol=1e-6)
        assert answer.as_numpy(name).dtype == getattr(expected, name).dtype


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("[" + "[]," * 11_000_000 + "[]]", 413),
        ("[" + "[]," * 700_000 + "[]]", 400),
        ("[" + "0," * 1_000_000 + "0]", 400),
        ("[" * 1_000_000 + "]" * 1_000_000, 400),
        ('["a"' + ',"a"' * 500_000 + "]", 413),
    ],
    ids=["11 million lists", "lists", "numbers", "depth", "strings"],
)
def test_a_bomb_costs_the_server_neither_time_nor_memory(server, tiny_model_path, text, status):
    tensor = f'{{"name":"image","shape":[1,1,8,8],"datatype":"FP32","data":{text}}}'
    bomb = gzip.compress(f'{{"inputs":[{tensor}]}}'.encode(), 1)
    before, waits, done = memory_of(server.process), [], threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=f"http://{server.address}") as client:
            while not done.is_set():
                began = time.perf_counter()
                assert client.get("/v2/health/live").status_code == 200
                waits.append(time.perf_counter() - began)
                time.sleep(0.001)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        url = f"http://{server.address}/v2/models/{tiny_model_path.stem}/infer"
        answers = [httpx.post(url, content=bomb, headers={"Content-Encoding": "gzip"}, timeout=60) for _ in range(3)]
        done.set()
        watching.result()
    assert [(answer.status_code, list(answer.json())) for answer in answers] == [(status, ["error"])] * 3
    assert np.median(waits) < 0.05
    assert max(waits) < 1.0  # it was 6 s and more
    assert memory_of(server.process) - before < 300 * 2**20  # it was 2 GB


def memory_of(process) -> int:
    """Most memory that a process has ever had, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def test_a_server_without_a_free_descriptor_answers_who_is_connected_and_others_later(server):
    opened = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
    before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    host, port = server.address.split(":")
    with httpx.Client(base_url=f"http://{server.address}") as client:
        assert client.get("/v2/health/ready").status_code == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (opened + 5, before[1]))
        try:
            waiting = [socket.create_connection((host, int(port)), timeout=20) for _ in range(20)]
            assert client.get("/v2/health/ready").status_code == 200
            for connection in waiting:
                connection.close()
        finally:
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
    assert httpx.get(f"http://{server.address}/v2/health/ready").status_code == 200


def test_tritonclient_understands_the_errors(triton, tiny_model_path):
    images = np.full((1, 1, 8, 8), 2.0, np.float32)
    with pytest.raises(InferenceServerException, match="divide 8-bit pixels by 255") as caught:
        triton.infer(tiny_model_path.stem, [tensor(images, True)])
    assert caught.value.status() == "400"
    with pytest.raises(InferenceServerException, match="there is no model 'other'"):
        triton.get_model_metadata("other")


def test_sigterm_first_stops_being_ready_then_finishes_and_exits_with_zero(tiny_model_path):
    with running(tiny_model_path, "--drain-delay", "1.0", "--grace", "5") as server:
        url = f"http://{server.address}"
        with httpx.Client(base_url=url) as client:
            assert client.get("/v2/health/ready").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
            assert client.get("/v2/health/ready").status_code == 503
            body = np.zeros((1, 8, 8), "<f4").tobytes()
            headers = {"Inference-Header-Content-Length": "0"}
            answer = client.post(f"/v2/models/{tiny_model_path.stem}/infer", content=body, headers=headers)
            assert answer.status_code == 200
        assert server.wait() == 0
        assert "stopped" in server.log[-1]


def test_sigint_stops_without_the_delay(tiny_model_path):
    with running(tiny_model_path, "--drain-delay", "600") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0


def test_a_request_whose_body_still_arrives_is_answered_before_the_server_stops(tiny_model_path):
    with running(tiny_model_path, "--drain-delay", "0") as server:
        host, port = server.address.split(":")
        body = np.zeros((1, 8, 8), "<f4").tobytes()
        head = f"POST /v2/models/{tiny_model_path.stem}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(head.encode() + b"Inference-Header-Content-Length: 0\r\n\r\n" + body[:100])
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("stopping")
            time.sleep(0.3)
            connection.sendall(body[100:])
            assert connection.recv(12) == b"HTTP/1.1 200"
        assert server.wait() == 0


def test_a_request_that_never_arrives_cannot_keep_the_server_from_stopping(tiny_model_path):
    with running(tiny_model_path, "--drain-delay", "0", "--grace", "0.1") as server:
        host, port = server.address.split(":")
        head = f"POST /v2/models/{tiny_model_path.stem}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 256\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(head.encode() + b"abc")
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            with connection.makefile("rb") as answered:
                answer = answered.read()
        assert answer.startswith(b"HTTP/1.1 503")
        assert answer.endswith(b'{"error":"the server stopped before this request had arrived"}')
        assert server.wait() == 0
        assert not [line for line in server.log if "Traceback" in line]


def test_a_taken_port_is_one_clear_line_and_exit_code_two(tiny_model_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RecipeError, match=f"cannot listen on 127.0.0.1 port {port}.*choose another --port"):
            listen("127.0.0.1", port)
        assert run(["serve", str(tiny_model_path), "--port", str(port)]) == 2
    printed = capsys.readouterr().err
    assert "choose another --port" in printed
    assert len(printed.splitlines()) == 1
