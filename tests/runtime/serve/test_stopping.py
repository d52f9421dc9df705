"""How the server stops: what was sent before is answered, connections end with an answer, signals mean what they do."""

import io
import os
import signal
import socket
import threading

import pytest
from tests.runtime.running_server import running
from tests.runtime.serve.hammer import assert_none_is_lost_when_it_stops
from tests.runtime.serve.live import live, read_answer, until

from s2ap_defend.signals import requests_ignored


@pytest.mark.parametrize("drain_delay_s", [0.0, 0.3])
def test_no_request_is_lost_when_the_server_stops(classifier, batch, drain_delay_s):
    with live(classifier, drain_delay_s=drain_delay_s) as server:
        assert_none_is_lost_when_it_stops(server, server.raw(batch), clients=6)


def test_while_draining_every_answer_ends_its_connection(classifier, batch):
    with live(classifier, drain_delay_s=600) as server, server.connect() as before, server.connect() as idle:
        for connection in (before, idle):
            connection.sendall(server.raw(batch))
            assert "connection" not in read_answer(connection)[1]
        server.server.handle_exit(signal.SIGTERM, None)
        until(lambda: server.service.state == "draining")
        before.sendall(server.raw(batch) * 2)  # both were sent before it could know
        assert [read_answer(before)[1].get("connection") for _ in range(2)] == [None, "close"]
        with server.connect() as late:
            late.sendall(server.raw(batch))
            status, headers, _ = read_answer(late)
            assert (status, headers["connection"]) == (200, "close")
        server.server.handle_exit(signal.SIGTERM, None)
        until(lambda: server.server.should_exit)
        idle.sendall(server.raw(batch))
        status, headers, _ = read_answer(idle)
        assert (status, headers["connection"]) == (200, "close")


def test_all_of_many_requests_in_one_piece_are_answered_by_a_server_that_stops(classifier, batch):
    with live(classifier, drain_delay_s=0) as server, server.connect() as connection:
        connection.sendall(b"HEAD /v2/health/live HTTP/1.1\r\n\r\n" * 400 + server.raw(batch))
        answers = connection.recv(1)
        server.server.handle_exit(signal.SIGTERM, None)
        while received := connection.recv(65536):
            answers += received
    assert answers.count(b"HTTP/1.1 200 OK") == 401
    assert answers.count(b"connection: close") == 1
    assert b"model_name" in answers


def test_connections_that_wait_to_be_accepted_are_answered(classifier, batch):
    with live(classifier, drain_delay_s=0.0) as server:
        held = threading.Event()
        server.server._loop.call_soon_threadsafe(held.wait, 20)
        connections = [server.connect() for _ in range(5)]
        for connection in connections:
            connection.sendall(server.raw(batch))
        server.server.stop()
        held.set()
        for connection in connections:
            with connection:
                assert read_answer(connection)[0] == 200


def test_signals_mean_what_operators_expect(tiny_model_path):
    with running(tiny_model_path, "--drain-delay", "0") as server:
        server.process.send_signal(signal.SIGUSR1)
        assert "tiny is ready: 0 requests wait or run, 0 images wait" in server.wait_for("requests wait or run")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("for settings start again")
        server.process.send_signal(signal.SIGQUIT)
        assert server.wait() == 0
        assert "stopped" in server.log[-1]


def test_a_third_signal_gives_up_what_is_unfinished_without_a_traceback(tiny_model_path):
    with running(tiny_model_path, "--drain-delay", "600") as server:
        host, port = server.address.split(":")
        head = f"POST /v2/models/{tiny_model_path.stem}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 256\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(head.encode() + b"abc")
            for awaited in ("draining", "stopping: accepted", "giving up"):
                server.process.send_signal(signal.SIGTERM)
                server.wait_for(awaited)
            status, _, body = read_answer(connection)
            assert (status, body) == (503, b'{"error":"the server stopped before this request had arrived"}')
        assert server.wait() == 0
        assert not [line for line in server.log if "Traceback" in line or "Error" in line]


def test_what_only_asks_for_something_does_not_end_a_server_that_starts(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal
    asked = (signal.SIGHUP, signal.SIGUSR1)
    heard: list[int] = []
    before = [signal.signal(number, lambda number, _: heard.append(number)) for number in asked]
    try:
        with requests_ignored():
            for number in asked:
                os.kill(os.getpid(), number)
        assert heard == []
        for number in asked:
            os.kill(os.getpid(), number)
        assert heard == list(asked)
    finally:
        for number, handler in zip(asked, before, strict=True):
            signal.signal(number, handler)
