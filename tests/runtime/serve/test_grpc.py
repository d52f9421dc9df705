"""gRPC on the batcher of HTTP: the real server, tritonclient and its stubs, answers compared with offline ones."""

import signal
import threading

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.runtime.serve.calls import tensor
from tests.runtime.serve.live import live, until
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc

PUBLIC = ("label", "adversarial", "abstained")
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def server(whole):
    with live(whole, grpc_port=0, drain_delay_s=0) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server):
    with channel(server) as opened:
        yield service_pb2_grpc.GRPCInferenceServiceStub(opened)


def address(server) -> str:
    return f"127.0.0.1:{server.server.grpc.port}"


def channel(server) -> grpc.Channel:
    return grpc.insecure_channel(address(server))


def message(name, images, **changes) -> service_pb2.ModelInferRequest:
    made = service_pb2.ModelInferRequest(model_name=name, raw_input_contents=[images.tobytes()])
    made.inputs.add(name="image", datatype="FP32", shape=images.shape)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def hold_the_device(service, monkeypatch) -> threading.Event:
    """Let the model wait before every batch until the event is set."""
    go, device = threading.Event(), service.default.instance.batcher._device
    run = device._classify

    def waits(images):
        assert go.wait(20)
        return run(images)

    monkeypatch.setattr(device, "_classify", waits)
    return go


def code_of(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()


def test_tritonclient_finds_the_server_and_its_model(server, name):
    with InferenceServerClient(address(server)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(name, "1")
        assert "statistics" in client.get_server_metadata().extensions
        metadata = client.get_model_metadata(name, as_json=True)
        assert [output["name"] for output in metadata["outputs"]] == list(PUBLIC)
        assert client.get_model_config(name).config.max_batch_size == 32
        assert client.get_inference_statistics().model_stats[0].name == name
        assert client.get_model_repository_index().models[0].state == "READY"


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1), (np.float16, 1), (np.uint8, np.float32(255))])
def test_answers_are_the_offline_verdicts(server, classifier, name, batch, dtype, scale):
    images = (batch * scale).astype(dtype)
    expected = classifier(images.astype(np.float32) / np.float32(scale))
    with InferenceServerClient(address(server)) as client:
        answer = client.infer(name, [tensor(images)], request_id="a")
    assert answer.get_response().id == "a"
    assert [output.name for output in answer.get_response().outputs] == list(PUBLIC)
    for output in PUBLIC:
        np.testing.assert_array_equal(answer.as_numpy(output), getattr(expected, output))


def test_typed_contents_are_answered_as_raw_ones(stub, classifier, name, batch):
    expected = classifier(batch)
    asked = service_pb2.ModelInferRequest(model_name=name)
    asked.inputs.add(name="image", datatype="FP32", shape=batch.shape).contents.fp32_contents.extend(batch.ravel())
    assert stub.ModelInfer(asked).raw_output_contents[0] == expected.label.tobytes()
    levels = (batch * 255).astype(np.uint8)
    asked = service_pb2.ModelInferRequest(model_name=name)
    asked.inputs.add(name="image", datatype="UINT8", shape=batch.shape).contents.uint_contents.extend(levels.ravel())
    assert stub.ModelInfer(asked) == stub.ModelInfer(_levels(name, levels))
    asked.inputs[0].contents.uint_contents[0] = 256
    code, reason = code_of(lambda: stub.ModelInfer(asked))
    assert code == Code.INVALID_ARGUMENT
    assert "whole numbers from 0 to 255" in reason


def _levels(name, levels):
    asked = message(name, levels)
    asked.inputs[0].datatype = "UINT8"
    return asked


def without_inputs(asked):
    del asked.inputs[:]


def twice(asked):
    asked.inputs.add().CopyFrom(asked.inputs[0])


def both(asked):
    asked.inputs[0].contents.fp32_contents.append(1.0)


def of_another_type(asked):
    del asked.raw_input_contents[:]
    asked.inputs[0].contents.int_contents.append(1)


def half_precision(asked):
    del asked.raw_input_contents[:]
    asked.inputs[0].datatype = "FP16"


def not_finite(asked):
    asked.raw_input_contents[0] = np.full(asked.inputs[0].shape, np.nan, np.float32).tobytes()


def output(name):
    return lambda asked: asked.outputs.add(name=name)


def too_many(asked):
    asked.inputs[0].shape[0] = 1025
    asked.raw_input_contents[0] = bytes(1025 * 4 * int(np.prod(asked.inputs[0].shape[1:])))


def change(field, value):
    return lambda asked: setattr(asked, field, value)


def of_input(field, value):
    return lambda asked: setattr(asked.inputs[0], field, value)


BAD = [
    (without_inputs, Code.INVALID_ARGUMENT, "raw_input_contents has 1 tensors for 0 inputs"),
    (twice, Code.INVALID_ARGUMENT, "expected exactly one called 'image'"),
    (of_input("name", "picture"), Code.INVALID_ARGUMENT, "the inputs are ['picture']"),
    (of_input("datatype", "INT8"), Code.INVALID_ARGUMENT, "image has datatype 'INT8'"),
    (lambda asked: asked.inputs[0].shape.pop(), Code.INVALID_ARGUMENT, "the model takes [N, 1, 8, 8]"),
    (lambda asked: asked.inputs[0].shape.__setitem__(0, 5), Code.INVALID_ARGUMENT, "image has 1024 bytes, but FP32"),
    (lambda asked: asked.inputs[0].shape.__setitem__(0, -4), Code.INVALID_ARGUMENT, "an empty batch"),
    (both, Code.INVALID_ARGUMENT, "both raw_input_contents and fp32_contents"),
    (of_another_type, Code.INVALID_ARGUMENT, "the input has int_contents, but FP32 is sent as fp32_contents"),
    (half_precision, Code.INVALID_ARGUMENT, "FP16 has no form as numbers"),
    (not_finite, Code.INVALID_ARGUMENT, "finite"),
    (output("nothing"), Code.INVALID_ARGUMENT, "there is no output 'nothing'"),
    (output("votes"), Code.PERMISSION_DENIED, "output 'votes' is evidence"),
    (change("model_name", "other"), Code.NOT_FOUND, "there is no model 'other'"),
    (change("model_version", "2"), Code.NOT_FOUND, "has no version '2'"),
    (lambda asked: asked.parameters["timeout"], Code.INVALID_ARGUMENT, "parameter timeout must be a whole number"),
    (too_many, Code.INVALID_ARGUMENT, "send fewer at once"),
]


@pytest.mark.parametrize(("spoil", "code", "reason"), BAD)
def test_what_is_wrong_is_said(stub, name, batch, spoil, code, reason):
    asked = message(name, batch)
    spoil(asked)
    found, details = code_of(lambda: stub.ModelInfer(asked))
    assert found == code, details
    assert reason in details


def test_messages_are_bounded(stub, name):
    images = np.zeros((1400, 1, 8, 8), np.float32)
    code, reason = code_of(lambda: stub.ModelInfer(message(name, images)))
    assert code == Code.RESOURCE_EXHAUSTED
    assert "larger than max" in reason


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer", "ServerLive"])
def test_bytes_that_are_no_message_are_refused_without_a_traceback(server, method, caplog):
    with channel(server) as opened:
        call = opened.stream_stream(f"/inference.GRPCInferenceService/{method}")
        code, reason = code_of(lambda: list(call(iter([b"\xff" * 20]))))
    assert (code, reason) == (Code.INVALID_ARGUMENT, "the message is none of this call: its bytes cannot be read")
    assert not [record for record in caplog.records if record.exc_info]


def test_what_is_not_offered_says_why(stub):
    for call, reason in (
        (lambda: stub.CudaSharedMemoryStatus(service_pb2.CudaSharedMemoryStatusRequest()), "shared memory"),
        (lambda: stub.LogSettings(service_pb2.LogSettingsRequest()), "log has no settings"),
    ):
        code, details = code_of(call)
        assert code == Code.UNIMPLEMENTED
        assert reason in details


def test_a_stream_goes_on_after_an_error(stub, classifier, name, batch):
    expected = classifier(batch)
    asked = [message(name, batch, id="1"), message("other", batch, id="2"), message(name, batch[1:], id="3")]
    first, second, third = stub.ModelStreamInfer(iter(asked))
    assert first.infer_response.raw_output_contents[0] == expected.label.tobytes()
    assert "there is no model 'other'" in second.error_message
    assert [answer.infer_response.id for answer in (first, second, third)] == ["1", "2", "3"]
    assert third.infer_response.raw_output_contents[0] == expected.label[1:].tobytes()


def test_deadlines_and_cancelled_calls_leave_the_queue(server, stub, name, batch, monkeypatch):
    service = server.service
    go = hold_the_device(service, monkeypatch)
    try:
        running_call = stub.ModelInfer.future(message(name, batch))
        until(lambda: service.default.instance.batcher.running_rows == 4)
        cancelled = stub.ModelInfer.future(message(name, batch))
        until(lambda: service.default.instance.batcher.queued_rows == 4)
        cancelled.cancel()
        until(lambda: service.default.instance.batcher.queued_rows == 0)
        late = stub.ModelInfer.future(message(name, batch), timeout=0.5)
        until(lambda: service.default.instance.batcher.queued_rows == 4)
        assert code_of(late.result)[0] == Code.DEADLINE_EXCEEDED
        until(lambda: service.default.instance.batcher.queued_rows == 0)
        own = message(name, batch)
        own.parameters["timeout"].int64_param = 300_000
        code, reason = code_of(lambda: stub.ModelInfer(own))
        assert code in {Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}
        assert "timeout" in reason
    finally:
        go.set()
    assert len(running_call.result().raw_output_contents) == len(PUBLIC)


def test_a_full_queue_is_said(whole, name, batch, monkeypatch):
    limits = {"max_batch_rows": 4, "max_queue_rows": 4}
    with live(whole, grpc_port=0, drain_delay_s=0, **limits) as server, channel(server) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        go = hold_the_device(server.service, monkeypatch)
        try:
            first = stub.ModelInfer.future(message(name, batch))
            until(lambda: server.service.default.instance.batcher.running_rows == 4)
            second = stub.ModelInfer.future(message(name, batch))
            until(lambda: server.service.default.instance.batcher.queued_rows == 4)
            code, reason = code_of(lambda: stub.ModelInfer(message(name, batch)))
            assert (code, reason) == (Code.RESOURCE_EXHAUSTED, "4 images wait already; try again later")
        finally:
            go.set()
        assert first.result() == second.result()


def test_a_stopping_server_answers_what_it_accepted_and_nothing_new(whole, name, batch, monkeypatch):
    with live(whole, grpc_port=0, drain_delay_s=1.0) as server, channel(server) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        health = health_pb2_grpc.HealthStub(opened)
        statuses = health.Watch(health_pb2.HealthCheckRequest(service=name))
        assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
        go = hold_the_device(server.service, monkeypatch)
        accepted = stub.ModelInfer.future(message(name, batch))
        until(lambda: server.service.default.instance.batcher.running_rows == 4)
        server.server.handle_exit(signal.SIGTERM, None)
        assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not stub.ServerReady(service_pb2.ServerReadyRequest()).ready
        code, reason = code_of(lambda: stub.ModelInfer(message(name, batch)))
        assert (code, reason) == (Code.UNAVAILABLE, "the server is stopping")
        until(lambda: server.server.should_exit)
        go.set()
        assert accepted.result(timeout=20).raw_output_contents[0] == whole(batch).label.tobytes()
