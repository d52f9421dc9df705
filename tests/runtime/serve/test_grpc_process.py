"""gRPC of a server in its own process: many calls at once, errors as clients have them, and its end."""

import asyncio
import re
import signal
import time

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.runtime.running_server import running
from tests.runtime.serve.calls import tensor
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from s2ap_defend.types import Verdicts


@pytest.fixture(scope="module")
def process(tiny_model_path):
    with running(tiny_model_path, "--expose-evidence", "--grpc-port", "0", "--drain-delay", "0") as server:
        server.grpc = "127.0.0.1:" + server.wait_for("gRPC on port").rpartition(" ")[2].strip()
        yield server


def test_calls_at_the_same_time_each_get_their_own_rows_and_are_counted(process, classifier, name):
    rng = np.random.default_rng(7)
    work = [rng.random((int(rows), *classifier.input_shape), dtype=np.float32) for rows in rng.integers(1, 6, 24)]

    async def ask() -> list:
        wanted = [InferRequestedOutput(field) for field in Verdicts.FIELDS]
        async with tritonclient.grpc.aio.InferenceServerClient(process.grpc) as client:
            return await asyncio.gather(*(client.infer(name, [tensor(one)], outputs=wanted) for one in work))

    for images, answer in zip(work, asyncio.run(ask()), strict=True):
        expected = classifier(images)
        for field in Verdicts.FIELDS:
            np.testing.assert_array_equal(answer.as_numpy(field), getattr(expected, field))
    metrics = httpx.get(f"http://{process.address}/metrics").text
    (counted,) = re.findall(r'requests_total{[^}]*outcome="success"[^}]*protocol="grpc"[^}]*} (\d+)', metrics)
    assert int(counted) >= len(work)


def test_a_missing_model_is_an_error_of_tritonclient(process, batch):
    with (
        InferenceServerClient(process.grpc) as client,
        pytest.raises(InferenceServerException, match="there is no model 'other'"),
    ):
        client.infer("other", [tensor(batch)])


def test_the_process_ends_at_once_when_only_idle_streams_are_open(process):
    with grpc.insecure_channel(process.grpc) as opened:
        watching = health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest())
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        started = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        assert time.monotonic() - started < 15  # the grace is 20 s
