"""The real server on a thread of the test, and clients that speak to it by bytes."""

import json
import socket
import ssl
import threading
import time
from contextlib import contextmanager

import numpy as np

from s2ap_defend.serve import ServerConfig, create_app
from s2ap_defend.serve.server import Server, listen


class Live:
    """A server that runs: its service, its address, and what a client sends to it.

    With `tls`, what a client trusts, connections are made over TLS.
    """

    tls: ssl.SSLContext | None = None

    def __init__(self, server: Server, service, address: tuple[str, int]) -> None:
        self.server = server
        self.service = service
        self.address = address
        self.url = f"http{'s' * (service.certificate is not None)}://{address[0]}:{address[1]}"
        self.infer = f"/v2/models/{service.default.served.model}/infer"

    def connect(self, peer: str = "127.0.0.1") -> socket.socket:
        """A connection from an address of this machine."""
        connection = socket.create_connection(self.address, timeout=20, source_address=(peer, 0))
        if self.tls is None:
            return connection
        try:
            return self.tls.wrap_socket(connection, server_hostname=self.address[0])
        except OSError:
            connection.close()
            raise

    def raw(self, images: np.ndarray | None = None, *headers: str, length: int | None = None) -> bytes:
        """A whole request for one image, or, with a length, only the head of one that announces it."""
        body = b"" if images is None else images[:1].tobytes()
        lines = [f"POST {self.infer} HTTP/1.1", "Host: x", "Inference-Header-Content-Length: 0", *headers]
        lines.append(f"Content-Length: {len(body) if length is None else length}")
        return "\r\n".join([*lines, "\r\n"]).encode() + body

    def answers(self, images: np.ndarray, peer: str = "127.0.0.1") -> int:
        """Status of a request for one image from an address of this machine."""
        with self.connect(peer) as connection:
            connection.sendall(self.raw(images))
            return read_answer(connection)[0]


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer."""
    with connection.makefile("rb", buffering=0) as stream:
        status = stream.readline()
        if not status:
            raise EOFError
        headers = {}
        while (line := stream.readline()) not in {b"\r\n", b""}:
            key, _, value = line.decode().partition(":")
            headers[key.lower()] = value.strip()
        body, left = b"", int(headers.get("content-length", 0))
        while len(body) < left:
            body += stream.read(left - len(body))
        return int(status.split()[1]), headers, body


def read_error(connection: socket.socket) -> tuple[int, str]:
    """Status and reason of an answer that is an error and nothing else, and closes the connection."""
    status, headers, body = read_answer(connection)
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    answer = json.loads(body)
    assert list(answer) == ["error"]
    return status, answer["error"]


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes a connection without another word; waits for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def until(condition) -> None:
    """Wait for what another thread will do."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@contextmanager
def live(classifiers, **options):
    """A server of one classifier, or of several by name."""
    several = isinstance(classifiers, dict)
    files = {name: one.path for name, one in classifiers.items()} if several else classifiers.path
    config = ServerConfig(model=files, port=0, **options)
    app = create_app(classifiers, config)
    server = Server(app, app.state.service, config)
    with listen(config.host, config.port) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: app.state.service.state != "starting")
            yield Live(server, app.state.service, listener.getsockname()[:2])
        finally:
            server.stop()
            thread.join(30)
        assert not thread.is_alive()
