"""Who may ask what over gRPC: the real server with keys, asked by tritonclient and its stubs."""

import asyncio
import queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.runtime.serve.key_files import Ring
from tests.runtime.serve.live import live, until
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc

from s2ap_defend.serve import watched
from s2ap_defend.serve.access import grpc_need
from s2ap_defend.types import Verdicts

Code = grpc.StatusCode
NEEDS = {
    "open": {"ServerLive", "ServerReady"},
    "any": {"ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "RepositoryIndex"},
    "infer": {"ModelInfer", "ModelStreamInfer"},
}


@pytest.fixture
def ring(tmp_path, monkeypatch):
    monkeypatch.setattr(watched, "POLL_S", 0.02)
    ring = Ring(tmp_path)
    ring.add("slow", "infer", images_per_second=0.001, burst=4)
    return ring


@pytest.fixture
def server(classifier, ring):
    with live(classifier, keys=ring.path, grpc_port=0, drain_delay_s=0) as server:
        yield server


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.server.grpc.port}") as opened:
        yield service_pb2_grpc.GRPCInferenceServiceStub(opened)


def request_for(name, images):
    message = service_pb2.ModelInferRequest(model_name=name, raw_input_contents=[images.tobytes()])
    message.inputs.add(name="image", datatype="FP32", shape=images.shape)
    return message


def code_of(call, *arguments, key=None) -> Code:
    metadata = () if key is None else tuple(key.items())
    try:
        answer = call(*arguments, metadata=metadata)
        if isinstance(answer, grpc.Future):  # a stream
            list(answer)
    except grpc.RpcError as error:
        return error.code()
    return Code.OK


def test_every_call_asks_for_its_right_and_for_nothing_more(stub, ring, name, batch):
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        need = next((need for need, methods in NEEDS.items() if method.name in methods), "admin")
        assert grpc_need(f"/inference.GRPCInferenceService/{method.name}") == need
        message = getattr(service_pb2, method.input_type.name)()
        sent = iter([message]) if method.name == "ModelStreamInfer" else message
        call = getattr(stub, method.name)
        found = [code_of(call, sent, key=ring.bearer(who)) for who in (None, "asker", "operator")]
        denied = {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED}
        assert (found[0] == Code.UNAUTHENTICATED) == (need != "open"), method.name
        assert (found[1] == Code.PERMISSION_DENIED) == (need == "admin"), method.name
        assert (found[2] == Code.PERMISSION_DENIED) == (need == "infer"), method.name
        assert need != "open" or not set(found) & denied


def test_health_checks_need_no_key(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.server.grpc.port}") as opened:
        answer = health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_tritonclient_presents_keys_and_sees_what_they_may(server, ring, name, batch, classifier):
    address = f"127.0.0.1:{server.server.grpc.port}"
    tensor = InferInput("image", list(batch.shape), "FP32")
    tensor.set_data_from_numpy(batch)
    with InferenceServerClient(address) as client:
        answer = client.infer(name, [tensor], headers=ring.bearer("asker"))
        assert [output.name for output in answer.get_response().outputs] == ["label", "adversarial", "abstained"]
        np.testing.assert_array_equal(answer.as_numpy("label"), classifier(batch).label)
        described = client.get_model_metadata(name, headers={"x-api-key": ring.tokens["analyst"]})
        assert [output.name for output in described.outputs] == list(Verdicts.FIELDS)
        assert client.get_inference_statistics(headers=ring.bearer("operator")).model_stats[0].name == name

    async def ask():
        async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
            return await client.infer(name, [tensor], headers=ring.bearer("analyst"))

    np.testing.assert_array_equal(asyncio.run(ask()).as_numpy("votes"), classifier(batch).votes)


def test_a_wrong_key_and_a_limit_are_said(stub, ring, name, batch):
    for key, code, said in (
        ({}, Code.UNAUTHENTICATED, "this needs a key"),
        ({"authorization": "Bearer wrong"}, Code.UNAUTHENTICATED, "this key is not known here"),
        ({"x-api-key-bin": b"\xff"}, Code.UNAUTHENTICATED, "this needs a key"),
        (ring.bearer("operator"), Code.PERMISSION_DENIED, "does not have the right infer"),
    ):
        with pytest.raises(grpc.RpcError, match=said) as raised:
            stub.ModelInfer(request_for(name, batch), metadata=tuple(key.items()))
        assert raised.value.code() == code
    slow = tuple(ring.bearer("slow").items())
    stub.ModelInfer(request_for(name, batch[:3]), metadata=slow)
    with pytest.raises(grpc.RpcError, match=r"this key may ask about 0.001 images a second") as raised:
        stub.ModelInfer(request_for(name, batch[:2]), metadata=slow)
    assert raised.value.code() == Code.RESOURCE_EXHAUSTED
    (waits,) = [value for key, value in raised.value.trailing_metadata() if key == "grpc-retry-pushback-ms"]
    assert 990_000 <= int(waits) <= 1_000_000


def test_a_stream_ends_to_be_answered_when_its_key_is_removed(server, stub, ring, name, batch):
    waiting: queue.Queue = queue.Queue()
    answers = stub.ModelStreamInfer(iter(waiting.get, None), metadata=tuple(ring.bearer("asker").items()))
    waiting.put(request_for(name, batch))
    assert not next(answers).error_message
    ring.add("newcomer", "infer")
    until(lambda: code_of(stub.ModelInfer, request_for(name, batch), key=ring.bearer("newcomer")) == Code.OK)
    waiting.put(request_for(name, batch))
    assert not next(answers).error_message  # its own key is as it was
    ring.remove("asker")
    until(lambda: code_of(stub.ModelInfer, request_for(name, batch), key=ring.bearer("asker")) != Code.OK)
    waiting.put(request_for(name, batch))
    assert "the key of this stream was removed or changed" in next(answers).error_message
    waiting.put(None)
    assert list(answers) == []
