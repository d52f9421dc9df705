"""What one client, or one peer, may take of a server: nobody can lock the others out."""

import json
import re
import socket
import struct
import time
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.serve.live import is_closed, live, read_answer, read_error, until

from s2ap_defend.serve.connection import MOST_UNANSWERED, PIECE_BYTES
from s2ap_defend.serve.shares import Shares, peer_of

RESET = struct.pack("ii", 1, 0)
"""Of SO_LINGER: closing a connection resets it."""

OTHER = "127.0.0.2"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-30, 60)), max_size=40))
def test_a_peer_never_holds_more_than_is_left_and_a_new_one_always_finds_room(moves):
    shares = Shares(100)
    held = dict.fromkeys("abc", 0)
    for peer, amount in moves:
        if amount >= 0:
            taken = shares.take(peer, amount)
            held[peer] += amount * taken
            assert not taken or held[peer] <= 100 - sum(held.values())
        elif held[peer] >= -amount:
            shares.give_back(peer, -amount)
            held[peer] += amount
        assert shares.total == sum(held.values()) < 100
        assert shares.fits("new", (100 - shares.total) // 2)


def test_a_greedy_peer_gets_half_and_two_get_a_third_each():
    shares = Shares(120)
    while shares.take("a", 1):
        pass
    assert shares.total == 60
    while shares.take("b", 1):
        pass
    assert shares.total - 60 == 30
    shares.give_back("a", 60)
    shares.give_back("b", 30)
    while shares.take("a", 1) and shares.take("b", 1):
        pass
    assert shares.total == 80


@pytest.mark.parametrize(
    ("client", "peer"),
    [
        (None, ""),
        (("10.0.0.1", 5), "10.0.0.1"),
        (("2001:db8:1:2:3:4:5:6", 5), "2001:db8:1:2::"),
        (("::ffff:10.0.0.1", 5), "10.0.0.1"),
        (("fe80::1%eth0", 5), "fe80::"),
        (("no:address", 5), "no:address"),
    ],
)
def test_a_peer_is_an_address_or_the_network_that_one_site_has(client, peer):
    assert peer_of(client) == peer


def test_bytes_that_are_announced_and_do_not_come_cost_others_nothing(classifier, batch):
    limits = {"max_body_bytes": 2**21, "max_queue_bytes": 2**22}
    with live(classifier, **limits) as server, ExitStack() as stack:
        for _ in range(16):
            hostile = stack.enter_context(server.connect())
            hostile.sendall(server.raw(length=2**21))
        until(lambda: len(server.server.server_state.tasks) == 16)
        assert server.service.receiving.total == 0
        assert server.answers(batch) == 200


def test_a_peer_that_sends_parts_of_bodies_fills_its_own_share_only(classifier, batch):
    limits = {"max_body_bytes": 2**20, "max_queue_bytes": 2**22}
    with live(classifier, **limits) as server:
        part = bytes(3 * 2**18)
        hostile = [server.connect(), server.connect()]
        for connection in hostile:
            connection.sendall(server.raw(length=2**20) + part)
        until(lambda: server.service.receiving.total == 2 * len(part))
        with server.connect() as one_more:
            one_more.sendall(server.raw(length=2**20) + part)
            status, _, body = read_answer(one_more)
            assert (status, list(json.loads(body))) == (429, ["error"])
        assert server.answers(batch, OTHER) == 200
        for connection in hostile:
            connection.close()
        until(lambda: server.service.receiving.total == 0)


def test_a_body_that_drips_is_given_up_and_one_at_the_least_rate_is_not(classifier, batch, monkeypatch):
    monkeypatch.setattr("s2ap_defend.serve.body.SLOW_START_S", 0.2)
    with live(classifier, body_rate_bytes_s=100) as server, server.connect() as dripping, server.connect() as steady:
        body = batch[:1].tobytes()
        dripping.sendall(server.raw(length=len(body)) + body[:1])
        steady.sendall(server.raw(length=len(body)) + body[:100])
        time.sleep(0.4)
        steady.sendall(body[100:])
        assert read_answer(steady)[0] == 200
        assert read_error(dripping) == (408, "the body did not arrive at 100 bytes a second or faster")


def test_connections_are_limited_in_all_and_for_each_peer(classifier, batch):
    with live(classifier, max_connections=6) as server, ExitStack() as stack:
        held = [stack.enter_context(server.connect()) for _ in range(3)]
        until(lambda: len(server.server.server_state.connections) == 3)
        with server.connect() as refused:
            assert read_error(refused) == (503, "too many connections are open already; try again later")
        assert server.answers(batch, OTHER) == 200
        held[0].close()
        until(lambda: len(server.server.server_state.connections) == 2)
        assert server.answers(batch) == 200


def test_a_connection_that_stays_silent_is_closed_and_one_between_two_requests_is_not(classifier, batch):
    with live(classifier, head_timeout_s=0.3) as server, server.connect() as silent, server.connect() as idle:
        idle.sendall(server.raw(batch))
        assert read_answer(idle)[0] == 200
        assert is_closed(silent)
        time.sleep(0.3)
        idle.sendall(server.raw(batch))
        assert read_answer(idle)[0] == 200


def test_a_client_that_pipelines_and_goes_leaves_nothing_in_the_log(classifier, batch, caplog):
    """Its first answers met a closed connection, which was an error of the application once for each."""
    with live(classifier) as server:
        for _ in range(10):
            with server.connect() as connection:
                connection.sendall(server.raw(batch) * 20)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        until(lambda: not server.server.server_state.connections and not server.server.server_state.tasks)
        assert server.answers(batch) == 200
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_of_thousands_of_requests_in_one_piece_few_are_begun_at_a_time_and_all_are_answered_in_order(held, batch):
    """They were all begun at once, and nobody else was answered meanwhile."""
    held.gate.set()
    with live(held) as server, server.connect() as connection, server.connect() as other:
        held.gate.clear()
        connection.sendall(server.raw(batch) + b"HEAD /v2/health/live HTTP/1.1\r\n\r\n" * 999 + server.raw(batch))
        connection.shutdown(socket.SHUT_WR)
        connections = server.server.server_state.connections
        until(lambda: any(one.pipeline for one in connections))
        other.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(other)[0] == 200
        assert max(len(one.pipeline) for one in connections) <= MOST_UNANSWERED + PIECE_BYTES // 33
        held.gate.set()
        with connection.makefile("rb") as stream:
            answers = stream.read()
    lines = re.findall(rb"HTTP/1.1 (200 OK)\r\n(?:[^\r]+\r\n)*?content-length: (\d+)", answers)
    assert [line for line, _ in lines] == [b"200 OK"] * 1001
    lengths = [int(length) for _, length in lines]
    assert lengths[0] == lengths[-1] > lengths[1] == lengths[500] == len(b'{"live":true}')


def test_a_connection_is_idle_from_its_last_answer_on(classifier, batch, monkeypatch):
    monkeypatch.setattr("s2ap_defend.serve.server.KEEP_ALIVE_S", 0.5)
    with live(classifier) as server, server.connect() as connection:
        for _ in range(3):
            connection.sendall(server.raw(batch))
            assert read_answer(connection)[0] == 200
            answered_s = time.monotonic()
            time.sleep(0.2)
        assert is_closed(connection)
        assert 0.4 < time.monotonic() - answered_s < 10
