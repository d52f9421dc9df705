"""What one gRPC client, or one peer, may take of a server and leave undone."""

import contextlib
import socket
import threading
from contextlib import ExitStack, contextmanager

import grpc
import numpy as np
import pytest
from tests.runtime.serve.live import is_closed, live, until
from tritonclient.grpc import service_pb2, service_pb2_grpc

from s2ap_defend.serve.grpc import server as grpc_server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]) + bytes([0, 0, 0, 4, 1, 0, 0, 0, 0])
CALL = "/inference.GRPCInferenceService/ModelInfer"


def connect(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server.grpc.port), timeout=20)


def ended(connection: socket.socket) -> bool:
    """Whether the server ends a connection, whatever it says before."""
    while True:
        try:
            if not connection.recv(4096):
                return True
        except ConnectionResetError:
            return True


def is_greeted(connection: socket.socket) -> bool:
    """Whether the server takes a connection, and says so by its settings."""
    try:
        return len(connection.recv(9)) > 0
    except ConnectionResetError:
        return False


def takes_one(server) -> bool:
    """Whether a server takes another connection now.

    gRPC's clients may find out much later: they wait longer after every failure, and 30 s to look a name up again.
    """
    with connect(server) as connection:
        return is_greeted(connection)


@contextmanager
def through(port: int, peer: str):
    """An address whose only connection reaches a port of this machine from another address of it."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def relay() -> None:
        near, _ = listener.accept()
        with near, socket.create_connection(("127.0.0.1", port), source_address=(peer, 0)) as far:
            back = threading.Thread(target=pump, args=(far, near))
            back.start()
            pump(near, far)
            back.join(20)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=relay)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(20)


def half_sent(opened: grpc.Channel, done: threading.Event) -> grpc.Future:
    """A call whose only message does not come before the event."""
    call = opened.stream_unary(CALL, request_serializer=bytes, response_deserializer=bytes)

    def nothing():
        done.wait(20)
        yield from ()

    return call.future(nothing())


def test_connections_are_limited_in_all(classifier):
    with live(classifier, grpc_port=0, max_connections=3) as server, ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(3)]
        for connection in held:
            assert is_greeted(connection)
        with connect(server) as refused:
            assert is_closed(refused)
        held.pop().close()
        until(lambda: takes_one(server))


def test_a_connection_that_stays_silent_is_closed(classifier):
    with live(classifier, grpc_port=0, head_timeout_s=0.2) as server, connect(server) as silent:
        assert ended(silent)


def test_a_connection_without_calls_is_closed(classifier, monkeypatch):
    monkeypatch.setattr(grpc_server, "KEEP_ALIVE_S", 0.2)
    with live(classifier, grpc_port=0) as server, connect(server) as idle:
        idle.sendall(PREFACE)
        assert ended(idle)


def test_a_message_that_does_not_come_ends_its_call(classifier, batch, name):
    with live(classifier, grpc_port=0, body_timeout_s=0.2) as server, ExitStack() as stack:
        opened = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.server.grpc.port}"))
        done = threading.Event()
        stack.callback(done.set)
        error = half_sent(opened, done).exception(timeout=20)
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert error.details() == "the message did not arrive within 0.2 s"
        until(lambda: server.server.grpc.gate.calls.total == 0)
        done.set()
        error = half_sent(opened, done).exception(timeout=20)
        assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        assert stub.ModelInfer(whole(name, batch)).raw_output_contents[0] == classifier(batch).label.tobytes()


def whole(name: str, images: np.ndarray) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=name, raw_input_contents=[images.tobytes()])
    message.inputs.add(name="image", datatype="FP32", shape=images.shape)
    return message


@pytest.mark.parametrize("leaves", ["its calls half sent", "its streams open"])
def test_a_peer_fills_its_own_share_of_the_calls_only(classifier, batch, name, leaves):
    with live(classifier, grpc_port=0, max_connections=8) as server, ExitStack() as stack:
        calls = server.server.grpc.gate.calls
        opened = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.server.grpc.port}"))
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        address = f"127.0.0.1:{server.server.grpc.port}"
        asking = service_pb2_grpc.GRPCInferenceServiceStub(
            stack.enter_context(grpc.insecure_channel(address, own_connection))
        )
        done = threading.Event()
        stack.callback(done.set)
        if leaves == "its calls half sent":
            held = [half_sent(opened, done) for _ in range(4)]
        else:
            held = [stub.ModelStreamInfer(_waiting(done)) for _ in range(4)]
        until(lambda: calls.total == 4)
        with pytest.raises(grpc.RpcError, match="too many calls are open already; try again later") as raised:
            asking.ModelInfer(whole(name, batch))
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with through(server.server.grpc.port, "127.0.0.2") as other, grpc.insecure_channel(other) as near:
            answer = service_pb2_grpc.GRPCInferenceServiceStub(near).ModelInfer(whole(name, batch))
            assert answer.raw_output_contents[0] == classifier(batch).label.tobytes()
        for call in held:
            call.cancel()
        until(lambda: calls.total == 0)
        assert asking.ModelInfer(whole(name, batch)) == answer


def _waiting(done: threading.Event):
    done.wait(20)
    yield from ()
