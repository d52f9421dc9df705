"""The server on Ray Serve: what a deployment's file may say, and a cluster of two nodes that loses a replica."""

import os
import signal
import threading
import time
from importlib import import_module
from pathlib import Path

import httpx
import kubernetes_validate
import numpy as np
import pytest
import ray
import yaml
from click.testing import CliRunner
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema
from tests.runtime.serve.live import until

from s2ap_defend.commands.deploy import deploy
from s2ap_defend.commands.main import run
from s2ap_defend.errors import RecipeError
from s2ap_defend.serve.ray import Settings, app, file_sha256

PORT = 8126


def written(folder, **values):
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_dry_run_says_what_would_be_deployed(tiny_model_path):
    scaling = {"min_replicas": 2, "max_replicas": 5}
    file = written(tiny_model_path.parent, model=tiny_model_path.name, replicas=scaling, server={"threads": 1})
    found = CliRunner().invoke(deploy, [str(file), "--dry-run"])
    assert found.exit_code == 0
    assert found.output == f"{tiny_model_path} ({file_sha256(tiny_model_path)[:12]}...): 2 to 5 replicas\n"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "model: Field required"),
        ({"model": "m.onnx", "replica": 2}, "replica: Extra inputs are not permitted"),
        ({"model": "m.onnx", "replicas": 0}, "replicas: Input should be greater than or equal to 1"),
        ({"model": "m.onnx", "replicas": {"min_replicas": 3, "max_replicas": 2}}, "less than min_replicas 3"),
        ({"model": "m.onnx", "gpus": 2}, "gpus: Input should be 0 or 1"),
        ({"model": "m.onnx", "server": {"port": 1}}, "server.port is decided by Ray"),
        ({"model": "m.onnx", "server": {"tls_cert": "c"}}, "server.tls_cert is decided by Ray"),
        ({"model": "m.onnx", "server": {"thread": 1}}, "server.thread is not known; expected one of access_log"),
        ({"model": "m.onnx", "server": {"threads": "many"}}, "server: threads: Input should be a valid integer"),
        ({"model": "m.onnx", "server": {"max_queue_rows": 8}}, "max_queue_rows 8 is less than max_batch_rows 32"),
        ([1], "Input should be a valid dictionary"),
    ],
)
def test_a_file_that_cannot_work_is_refused_with_its_key(values, said):
    with pytest.raises(RecipeError, match=said.replace("(", r"\(")):
        Settings.read(values)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (": [", [], "is no YAML file"),
        ("model: gone.onnx", [], "gone.onnx"),
        ("model: tiny.onnx", ["--host", "0.0.0.0"], "can be reached by other machines"),  # noqa: S104
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(tiny_model_path, capsys, text, options, said):
    file = tiny_model_path.parent / "deployment.yaml"
    file.write_text(text)
    assert run(["deploy", str(file), "--dry-run", *options]) == 2
    line = capsys.readouterr().err
    assert line.startswith("Error: ")
    assert said in " ".join(line.split())


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert run(["deploy", str(tmp_path / "gone.yaml")]) == 2
    assert "gone.yaml: No such file or directory; docs/deployment.md" in " ".join(capsys.readouterr().err.split())


def test_a_deployment_has_room_for_the_next_batch(tiny_model_path):
    settings = Settings(model=tiny_model_path, replicas=3, cpus=2, server={"max_batch_rows": 16, "grace_s": 7})
    deployment = app(settings)._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.max_ongoing_requests == 64
    assert deployment.max_queued_requests == 1024
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 7
    assert deployment.ray_actor_options["num_cpus"] == 2


@pytest.fixture
def cluster():
    """Two nodes of one core on this machine."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, namespace="serve", log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        yield nodes
    finally:
        serve.shutdown()
        ray.shutdown()
        nodes.shutdown()


class Client:
    """Asks on and on, twice where the first answer is an error of the cluster; compares labels."""

    def __init__(self, url: str, images: np.ndarray, expected: np.ndarray) -> None:
        self.answered = self.again = self.wrong = self.lost = 0
        self.stopped = False
        self._url, self._images, self._expected = url, images, expected

    def run(self) -> None:
        number = 0
        with httpx.Client(timeout=60) as client:
            while not self.stopped:
                row = number % len(self._images)
                number += 1
                label = self._ask(client, row)
                if label is None:
                    self.again += 1
                    label = self._ask(client, row)
                self.lost += label is None
                self.answered += label is not None
                self.wrong += label is not None and label != self._expected[row]

    def _ask(self, client: httpx.Client, row: int) -> int | None:
        headers = {"Inference-Header-Content-Length": "0"}
        try:
            answer = client.post(self._url, content=self._images[row : row + 1].tobytes(), headers=headers)
        except httpx.TransportError:
            return None
        if answer.status_code != 200:
            return None
        return int(np.frombuffer(answer.content[-10:-2], dtype="<i8")[0])


@pytest.mark.slow
def test_two_nodes_lose_a_replica_and_no_request_that_is_sent_twice(cluster, classifier, tiny_model_path):
    settings = Settings(model=tiny_model_path, replicas=2, server={"threads": 1})
    handle = serve.run(app(settings), name="tiny")
    assert handle is not None
    images = np.random.default_rng(3).random((16, *classifier.input_shape), dtype=np.float32)
    url = f"http://127.0.0.1:{PORT}"
    assert httpx.get(f"{url}/v2/health/ready").json() == {"ready": True}
    client = Client(f"{url}/v2/models/{tiny_model_path.stem}/infer", images, classifier(images).label)
    threads = [threading.Thread(target=client.run) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: client.answered > 100)
        pids = replica_pids()
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        before = client.answered
        until(lambda: client.answered > before + 100)
        deadline = time.monotonic() + 60
        while (now := set(replica_pids())) == set(pids) or len(now) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        client.stopped = True
        for thread in threads:
            thread.join(60)
    assert (client.lost, client.wrong) == (0, 0)


def replica_pids() -> list[int]:
    """Processes of the replicas that run."""
    from ray.util.state import list_actors

    alive = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
    return [actor.pid for actor in alive if actor.class_name.startswith("ServeReplica")]


def test_the_manifest_of_a_ray_service_deploys_this_application():
    (manifest,) = yaml.safe_load_all((Path(__file__).parents[2] / "deploy" / "rayservice.yaml").read_text())
    config = ServeDeploySchema(**yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, name = application.import_path.split(":")
    assert getattr(import_module(module), name) is app
    assert Settings.read(application.args).server_config().grace_s == 20
    cluster = manifest["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, "1.37", strict=True)
