"""HTTP as clients really speak it: upgrades, heads of any size and speed, half-closed connections, HEAD."""

import json
import socket
import time
from contextlib import suppress
from itertools import pairwise

import httpx
import numpy as np
import pytest
from tests.runtime.serve.live import is_closed, live, read_answer, read_error, until

from s2ap_defend.classifier import DefendedClassifier


@pytest.fixture(scope="module")
def server(classifier):
    with live(classifier, head_timeout_s=1.0) as server:
        yield server


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")


@pytest.mark.parametrize("parts", [1, 2, 400], ids=["at once", "head first", "byte by byte"])
def test_a_request_that_offers_http2_is_answered_over_http1(server, batch, parts):
    request = server.raw(batch, *UPGRADE)
    head = request.index(b"\r\n\r\n") + 4
    cuts = [0, *([] if parts == 1 else [head] if parts == 2 else range(1, len(request), 7)), len(request)]
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # and the connection goes on
            for start, stop in pairwise(cuts):
                connection.sendall(request[start:stop])
            status, _, body = read_answer(connection)
            assert (status, body[:13]) == (200, b'{"model_name"')


def test_several_requests_that_offer_http2_in_a_row_are_answered_in_order(server, batch):
    chunked = server.raw(batch, *UPGRADE).replace(b"Content-Length: 256", b"Transfer-Encoding: chunked")
    chunked = chunked[: chunked.index(b"\r\n\r\n") + 4] + b"100\r\n" + batch[:1].tobytes() + b"\r\n0\r\n\r\n"
    live_head = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(server.raw(batch, *UPGRADE) + live_head + chunked + server.raw(batch))
        answers = [read_answer(connection) for _ in range(4)]
    assert [status for status, _, _ in answers] == [200] * 4
    assert answers[1][2] == b'{"live":true}'
    assert answers[0][2] == answers[2][2] == answers[3][2]


@pytest.mark.parametrize("kind", ["an answer", "an error", "a page"])
def test_head_and_body_of_an_answer_come_at_once(server, batch, kind):
    asked = {
        "an answer": server.raw(batch),
        "an error": server.raw(batch).replace(b"Length: 0", b"Length: x"),
        "a page": b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    }[kind]
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(asked)
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:])
            assert lines[0] == ("HTTP/1.1 400 Bad Request" if kind == "an error" else "HTTP/1.1 200 OK")
            assert len(headers) == len(lines) - 1
            assert int(headers["content-length"]) == len(body) > 0
            assert {"date", "x-request-id", "x-frame-options"} < set(headers)


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000, 431, "the head of the request has more than 32768 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"X-Y: abcdefgh\r\n" * 3000, 431, "the head of the request has more than 32768 bytes"),
        (b"GET /" + b"a" * 40_000, 431, "the head of the request has more than 32768 bytes"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 40_000, 431, "more than 32768 bytes"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "this is no valid HTTP request"),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", 405, "CONNECT is not allowed"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "this is no valid HTTP request"),
    ],
    ids=["header", "headers", "url", "chunk", "TLS", "CONNECT", "HTTP/2"],
)
def test_what_is_no_request_is_refused_in_one_sentence(server, sent, status, reason):
    with server.connect() as connection:
        connection.sendall(sent)
        found, error = read_error(connection)
        assert found == status
        assert reason in error
        assert is_closed(connection)


def test_a_head_that_never_ends_is_given_up(server):
    until_s = time.monotonic() + 20
    with server.connect() as connection, suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        while time.monotonic() < until_s:
            connection.send(b"a" * 2**14)
            time.sleep(0.001)
    assert time.monotonic() < until_s


def test_a_head_that_comes_byte_by_byte_is_given_up_in_time(server):
    began = time.monotonic()
    with server.connect() as connection:
        connection.settimeout(0.05)
        head = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 10_000
        for place in range(len(head)):
            try:
                connection.sendall(head[place : place + 1])
                if connection.recv(12, socket.MSG_PEEK):
                    break
            except TimeoutError:
                continue
        connection.settimeout(20)
        assert read_error(connection) == (408, "the head of the request did not arrive within 1 s")
    assert time.monotonic() - began < 20


def test_empty_lines_before_a_request_do_not_keep_a_connection_open(server):
    with server.connect() as connection:
        for _ in range(400):
            try:
                connection.sendall(b"\r\n")
            except OSError:
                break
            time.sleep(0.01)
        assert is_closed(connection)


class SlowClassifier(DefendedClassifier):
    """A defended classifier that takes a while."""

    seconds = 0.0

    def __call__(self, images):
        time.sleep(self.seconds)
        return super().__call__(images)


@pytest.fixture(scope="module")
def slow_server(tiny_model_path):
    slow = SlowClassifier.load(tiny_model_path, device="cpu", threads=1, executor="whole")
    with live(slow) as server:
        slow.seconds = 0.3
        yield server


def read_final_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The answer behind interim ones."""
    while (answer := read_answer(connection))[0] == 100:
        pass
    return answer


def test_a_client_that_has_ended_its_side_gets_its_answers(slow_server, batch):
    with slow_server.connect() as connection:
        connection.sendall(slow_server.raw(batch) * 2)
        connection.shutdown(socket.SHUT_WR)
        for last in (False, True):
            status, headers, body = read_final_answer(connection)
            assert (status, body[:13]) == (200, b'{"model_name"')
            assert (headers.get("connection") == "close") == last
        assert is_closed(connection)


def test_a_client_that_is_gone_does_not_count_as_one_that_has_ended_its_side(slow_server, batch):
    before = slow_server.service.default.instance.batcher.pending_requests
    with slow_server.connect() as busy:
        busy.sendall(slow_server.raw(batch) * 3)
        until(lambda: slow_server.service.default.instance.batcher.pending_requests > before)
        with slow_server.connect() as leaving:
            leaving.sendall(slow_server.raw(batch))
            until(lambda: slow_server.service.default.instance.batcher.queued_rows == 1)
        began = time.monotonic()
        until(lambda: slow_server.service.default.instance.batcher.queued_rows == 0)
        assert time.monotonic() - began < 5
        assert [read_answer(busy)[0] for _ in range(3)] == [200] * 3


def test_a_body_that_is_cut_off_is_nobody_to_answer(server, batch):
    with server.connect() as connection:
        connection.sendall(server.raw(batch)[:-1])
        connection.shutdown(socket.SHUT_WR)
        assert is_closed(connection)


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/health/live", "/v2/models/stats", "/metrics", "/openapi.json"])
def test_head_answers_as_get_does_without_a_body(server, path):
    with httpx.Client(base_url=server.url) as client:
        asked, got = client.head(path), client.get(path)
        assert (asked.status_code, asked.content) == (200, b"")
        assert asked.headers["content-type"] == got.headers["content-type"]
        if path != "/metrics":
            assert asked.headers["content-length"] == got.headers["content-length"]


def test_head_is_allowed_where_get_is_and_nowhere_else(server):
    with httpx.Client(base_url=server.url) as client:
        refused = client.head(server.infer)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        refused = client.delete("/v2/health/live")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        assert json.loads(refused.content) == {"error": "DELETE is not allowed at /v2/health/live"}


def test_raw_images_of_other_clients_are_still_answered(server, classifier, batch):
    with server.connect() as connection:
        connection.sendall(server.raw(batch))
        _, headers, body = read_answer(connection)
        length = int(headers["inference-header-content-length"])
        assert np.frombuffer(body[length : length + 8], "<i8") == classifier(batch[:1]).label
