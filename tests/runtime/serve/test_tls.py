"""TLS: the real server, real certificates, clients that check them."""

import json
import logging
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.runtime.serve.hammer import assert_none_is_lost_when_it_stops
from tests.runtime.serve.live import is_closed, live, read_answer, read_error, until
from tritonclient.grpc import service_pb2, service_pb2_grpc

from s2ap_defend.serve import connection as connections
from s2ap_defend.serve import watched
from s2ap_defend.serve.classify import encode_png


@contextmanager
def serving(classifier, authority, files, **options):
    with live(classifier, tls_cert=files[0], tls_key=files[1], **options) as server:
        server.tls = authority.trust
        yield server


def test_every_client_gets_the_verdicts_over_tls(classifier, authority, files, batch, name):
    expected = classifier(batch)
    with serving(classifier, authority, files, grpc_port=0, drain_delay_s=0) as server:
        host = server.url.removeprefix("https://")
        tensor = tritonclient.http.InferInput("image", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch)
        with tritonclient.http.InferenceServerClient(
            host, ssl=True, ssl_context_factory=lambda: ssl.create_default_context(cafile=str(authority.path))
        ) as client:
            answer = client.infer(name, [tensor])
            np.testing.assert_array_equal(answer.as_numpy("label"), expected.label)
        tensor = tritonclient.grpc.InferInput("image", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch)
        with tritonclient.grpc.InferenceServerClient(
            f"127.0.0.1:{server.server.grpc.port}", ssl=True, root_certificates=str(authority.path)
        ) as client:
            np.testing.assert_array_equal(client.infer(name, [tensor]).as_numpy("label"), expected.label)
        command = ["curl", "-s", "--cacert", authority.path, "--data-binary", "@-", f"{server.url}/classify"]
        done = subprocess.run(command, input=encode_png(batch[0]), capture_output=True, check=True)
        assert "label" in json.loads(done.stdout)["images"][0]
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(server.url)
        with socket.create_connection(server.address, timeout=20) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert is_closed(plain)
        assert server.answers(batch) == 200


def serial(address: tuple[str, int], trust: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection sees."""
    with (
        socket.create_connection(address, timeout=20) as raw,
        trust.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        return int(tls.getpeercert()["serialNumber"], 16)


def test_a_new_certificate_is_used_at_once_and_no_request_is_lost(
    classifier, authority, files, batch, name, monkeypatch, caplog
):
    monkeypatch.setattr(watched, "POLL_S", 0.02)
    caplog.set_level(logging.INFO)
    trusted = authority.path.read_bytes()
    done, lost, answered = threading.Event(), [], [0, 0, 0]
    with serving(classifier, authority, files, grpc_port=0, drain_delay_s=0) as server:
        grpc_address = ("127.0.0.1", server.server.grpc.port)
        seen = [serial(server.address, authority.trust)]

        def attempt(number, ask) -> None:
            while not done.is_set():
                try:
                    ask()
                except Exception as error:
                    lost.append(error)
                    return
                answered[number] += 1

        def on_a_new_connection() -> None:
            assert server.answers(batch) == 200

        with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
            stays = stack.enter_context(server.connect())

            def on_the_same_connection() -> None:
                stays.sendall(server.raw(batch))
                assert read_answer(stays)[0] == 200

            def over_grpc() -> None:
                credentials = grpc.ssl_channel_credentials(trusted)
                own = [("grpc.use_local_subchannel_pool", 1)]
                with grpc.secure_channel(f"127.0.0.1:{grpc_address[1]}", credentials, own) as opened:
                    stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
                    asked = service_pb2.ModelInferRequest(model_name=name, raw_input_contents=[batch.tobytes()])
                    asked.inputs.add(name="image", datatype="FP32", shape=batch.shape)
                    assert stub.ModelInfer(asked, timeout=20).raw_output_contents

            asking = [on_a_new_connection, on_the_same_connection, over_grpc]
            running = [pool.submit(attempt, number, ask) for number, ask in enumerate(asking)]
            for _ in range(3):
                before = list(answered)
                authority.issue(files[0].parent)
                until(lambda: serial(server.address, authority.trust) not in seen)
                seen.append(serial(server.address, authority.trust))
                assert serial(grpc_address, authority.trust) == seen[-1]
                until(lambda before=before: all(now > then for now, then in zip(answered, before, strict=True)) or lost)
            done.set()
            for one in running:
                one.result(timeout=30)
    assert not lost
    assert len(set(seen)) == 4
    assert "certificate and its key read again" in caplog.text


def test_a_wrong_new_certificate_leaves_the_former_in_use(classifier, authority, files, batch, monkeypatch, caplog):
    monkeypatch.setattr(watched, "POLL_S", 0.02)
    with serving(classifier, authority, files) as server:
        before = serial(server.address, authority.trust)
        files[1].write_text("nothing")
        until(lambda: "the former certificate and its key stay in use" in caplog.text)
        assert serial(server.address, authority.trust) == before
        assert caplog.text.count("stay in use") == 1
        authority.issue(files[0].parent)
        until(lambda: serial(server.address, authority.trust) != before)
        assert server.answers(batch) == 200


@pytest.mark.parametrize("drain_delay_s", [0.0, 0.3])
def test_no_request_is_lost_when_the_server_stops(classifier, authority, files, batch, drain_delay_s):
    with serving(classifier, authority, files, drain_delay_s=drain_delay_s) as server:
        assert_none_is_lost_when_it_stops(server, server.raw(batch), clients=4)


def test_a_connection_that_waits_to_be_accepted_or_has_begun_its_handshake_is_answered(
    classifier, authority, files, batch
):
    with serving(classifier, authority, files, drain_delay_s=0.0) as server, ThreadPoolExecutor(3) as pool:
        held = threading.Event()
        server.server._loop.call_soon_threadsafe(held.wait, 20)
        asking = [pool.submit(server.answers, batch) for _ in range(3)]
        time.sleep(0.1)  # they have connected
        server.server.stop()
        held.set()
        assert [one.result(timeout=20) for one in asking] == [200] * 3


def test_idle_and_silent_connections_do_not_keep_the_server_from_stopping(classifier, authority, files, batch):
    with ExitStack() as stack:
        with serving(classifier, authority, files, drain_delay_s=0, grace_s=600) as server:
            idle = stack.enter_context(server.connect())
            idle.sendall(server.raw(batch))
            assert read_answer(idle)[0] == 200  # and it reads nothing any more, not even the end of TLS
            silent = stack.enter_context(socket.create_connection(server.address, timeout=20))
            until(lambda: len(server.server.server_state.connections) == 2)
            began = time.monotonic()
            server.server.stop()
            until(lambda: not server.server.server_state.connections)
        assert time.monotonic() - began < 30  # a second each on an idle machine
        assert is_closed(silent)


def test_a_handshake_is_given_little_time_and_counts_as_a_connection(classifier, authority, files, batch):
    limits = {"head_timeout_s": 0.5, "max_connections": 6}
    with serving(classifier, authority, files, **limits) as server, ExitStack() as stack:
        hello = ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            authority.trust.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
        begun = [stack.enter_context(socket.create_connection(server.address, timeout=20)) for _ in range(3)]
        begun[0].sendall(hello.read()[:50])
        until(lambda: server.server._limits.connections.total == 3)
        with socket.create_connection(server.address, timeout=20) as refused:
            assert is_closed(refused)
        assert [is_closed(one) for one in begun] == [True] * 3
        until(lambda: server.server._limits.connections.total == 0)
        assert server.answers(batch) == 200


def test_a_client_that_reads_slowly_gets_its_whole_last_answer(classifier, authority, files, monkeypatch):
    monkeypatch.setattr(connections, "GOODBYE_S", 0.05)
    images = np.random.default_rng(1).random((256, *classifier.input_shape), dtype=np.float32)
    with serving(classifier, authority, files, expose_evidence=True) as server:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(20)
        raw.connect(server.address)
        with authority.trust.wrap_socket(raw, server_hostname="localhost") as slow:
            tensor = {"name": "image", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
            body = json.dumps({"inputs": [tensor]}).encode()
            head = (
                f"POST {server.infer} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            opened = server.server.server_state.connections
            until(lambda: any(isinstance(one, connections.Connection) for one in list(opened)))
            (connection,) = opened
            connection.raw.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            slow.sendall(head.encode() + body)
            until(connection.transport.is_closing)
            time.sleep(0.3)  # it has had several goodbyes
            assert connection.raw.get_write_buffer_size() > 0
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
            status, _, body = read_answer(slow)
    assert status == 200
    label = json.loads(body)["outputs"][0]["data"]
    assert label == classifier(images).label.tolist()


def test_what_is_refused_before_it_is_a_request_is_answered_over_tls_too(classifier, authority, files):
    with serving(classifier, authority, files) as server, server.connect() as connection:
        connection.sendall(b"no request\r\n\r\n")
        assert read_error(connection) == (400, "this is no valid HTTP request")
