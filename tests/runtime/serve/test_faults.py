"""Everything that goes wrong at once, under load: every request that was sent whole is answered, and rightly."""

import signal
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import pytest
import tritonclient.http
from tests.runtime.running_server import Server, running
from tests.runtime.serve.live import read_answer

from s2ap_defend.types import Float32, Int64

LINGER = struct.pack("ii", 1, 0)
"""Of SO_LINGER: closing a connection resets it."""


def connect(server: Server) -> socket.socket:
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def whole_request(model: str, images: Float32) -> bytes:
    lines = (f"POST /v2/models/{model}/infer HTTP/1.1", "Host: x", "Inference-Header-Content-Length: 0")
    return "\r\n".join([*lines, f"Content-Length: {images.nbytes}", "\r\n"]).encode() + images.tobytes()


class Clients:
    """Clients that behave, and others; each asks on and on until `done`."""

    def __init__(self, server: Server, model: str, images: Float32, labels: Int64) -> None:
        self.done = Event()
        self.right = self.wrong = self.refused = self.faults = 0
        self._server, self._model, self._images, self._labels = server, model, images, labels

    def behave(self, seed: int) -> None:
        """Ask by a client that nobody here wrote, and compare the labels."""
        draw = np.random.default_rng(seed)
        with tritonclient.http.InferenceServerClient(self._server.address, connection_timeout=30) as client:
            while not self.done.is_set():
                first = int(draw.integers(len(self._images) - 8))
                rows = slice(first, first + int(draw.integers(1, 9)))
                tensor = tritonclient.http.InferInput("image", list(self._images[rows].shape), "FP32")
                tensor.set_data_from_numpy(self._images[rows])
                try:
                    found = client.infer(self._model, [tensor]).as_numpy("label")
                except tritonclient.http.InferenceServerException as error:
                    if error.status() not in {"429", "503"}:
                        raise
                    self.refused += 1
                    continue
                right = np.array_equal(found, self._labels[rows])
                self.right, self.wrong = self.right + right, self.wrong + (not right)

    def misbehave(self, seed: int) -> None:
        """Send half a request, read nothing, reset, drip, lie about the length, or send what is no request."""
        draw = np.random.default_rng(seed)
        asked = whole_request(self._model, self._images[:1])
        while not self.done.is_set():
            kind = str(draw.choice(["half", "unread", "reset", "drip", "short", "garbage", "slow reader"]))
            with connect(self._server) as connection:
                try:
                    self._do(kind, connection, asked, draw)
                except (ConnectionError, TimeoutError, EOFError):
                    assert kind in {"garbage", "half", "short", "reset", "unread"}, kind
            self.faults += 1

    def _do(self, kind: str, connection: socket.socket, asked: bytes, draw: np.random.Generator) -> None:
        cut = int(draw.integers(1, len(asked)))
        if kind in {"half", "reset"}:
            connection.sendall(asked[:cut])
            if kind == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        elif kind == "unread":
            connection.sendall(asked * 20)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        elif kind == "drip":
            for begin in range(0, len(asked), 60):
                connection.sendall(asked[begin : begin + 60])
                time.sleep(0.002)
            assert read_answer(connection)[0] in {200, 429, 503}
        elif kind == "short":
            connection.sendall(asked[: -int(draw.integers(1, 200))])
            connection.shutdown(socket.SHUT_WR)
            assert read_answer(connection)[0] in {400, 408}
        elif kind == "garbage":
            connection.sendall(draw.bytes(400) + b"\r\n\r\n")
            connection.recv(1000)
        else:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.sendall(asked * 8)
            time.sleep(0.1)
            for _ in range(8):
                assert read_answer(connection)[0] in {200, 429, 503}


def resident_mib(server: Server) -> float:
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


@pytest.mark.slow
def test_under_faults_every_whole_request_is_answered_rightly_and_memory_is_bounded(
    tiny_model_path, classifier, random_images
):
    labels, model = classifier(random_images).label, tiny_model_path.stem
    with running(tiny_model_path, "--drain-delay", "0", "--allow-load") as server, ThreadPoolExecutor(8) as pool:
        clients = Clients(server, model, random_images, labels)
        tasks = [pool.submit(clients.behave, seed) for seed in range(4)]
        tasks += [pool.submit(clients.misbehave, seed) for seed in range(4)]
        try:
            time.sleep(3)
            before = resident_mib(server)
            for _ in range(3):
                server.process.send_signal(signal.SIGSTOP)
                time.sleep(1)
                server.process.send_signal(signal.SIGCONT)
                answer = httpx.post(f"http://{server.address}/v2/repository/models/{model}/load", timeout=60)
                assert answer.status_code == 200, answer.text
                time.sleep(2)
            after = resident_mib(server)
        finally:
            clients.done.set()
        for task in tasks:
            task.result(timeout=60)
        assert clients.wrong == 0
        assert clients.right > 100
        assert clients.faults > 20
        assert after < before + 150, (before, after)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    log = "".join(server.log)
    assert "Traceback" not in log, log[log.index("Traceback") - 300 :][:3000]
