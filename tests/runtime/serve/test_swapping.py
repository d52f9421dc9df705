"""Another file takes over while clients ask: every answer is that of one of the two, and none is lost."""

import logging
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.runtime.serve.live import live, read_answer, until

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.shipped import shipped_file
from s2ap_defend.types import Verdicts

OUTPUTS = ("label", "adversarial", "probabilities", "votes")


def put(source, path) -> None:
    """Replace a file in one step."""
    shutil.copy(source, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.fixture
def files(tiny_model_path, abstaining_model_path):
    return [tiny_model_path, abstaining_model_path]


@pytest.fixture
def path(tmp_path, files):
    found = tmp_path / "swapped.onnx"
    put(files[0], found)
    return found


@pytest.fixture
def swapped(path) -> DefendedClassifier:
    return DefendedClassifier.load(path, device="cpu", threads=1)


def load(server) -> httpx.Response:
    return httpx.post(f"{server.url}/v2/repository/models/swapped/load", timeout=60)


def test_every_answer_while_files_change_is_that_of_one_of_them_and_none_is_lost(files, path, swapped, random_images):
    batches = np.split(random_images[:64], 16)
    other = DefendedClassifier.load(files[1], device="cpu", threads=1)
    answers = [[model(batch) for batch in batches] for model in (swapped, other)]
    done = threading.Event()

    def which(found: Verdicts, number: int) -> list[int]:
        """Whose verdicts these are."""
        return [
            i
            for i, verdicts in enumerate(answers)
            if all(np.allclose(found[name], getattr(verdicts[number], name), atol=1e-5) for name in OUTPUTS)
        ]

    def hammer(kind, address: str, seen: list[int]) -> int:
        asked = 0
        with kind.InferenceServerClient(address) as client:
            while not done.is_set() or not asked:
                number = asked % len(batches)
                tensor = kind.InferInput("image", list(batches[number].shape), "FP32")
                tensor.set_data_from_numpy(batches[number])
                answer = client.infer("swapped", [tensor])
                (model,) = which({name: answer.as_numpy(name) for name in OUTPUTS}, number)
                seen.append(model)
                asked += 1
                time.sleep(0.01)  # what loads needs the processor, too
        return asked

    with live(swapped, grpc_port=0, drain_delay_s=0, allow_load=True, expose_evidence=True) as server:
        addresses = {
            tritonclient.http: server.url.removeprefix("http://"),
            tritonclient.grpc: f"127.0.0.1:{server.server.grpc.port}",
        }
        with ThreadPoolExecutor(2) as pool:
            seen: list[list[int]] = [[], []]
            running = [
                pool.submit(hammer, kind, address, seen[i]) for i, (kind, address) in enumerate(addresses.items())
            ]
            try:
                for turn in (1, 0):
                    put(files[turn], path)
                    assert load(server).status_code == 200
                    before = [len(one) for one in seen]
                    until(lambda before=before: all(len(one) > n + 1 for one, n in zip(seen, before, strict=True)))
                    assert [one[-1] for one in seen] == [turn, turn]  # what begins behind a load is answered by it
            finally:
                done.set()
            assert sum(one.result(timeout=30) for one in running) == sum(map(len, seen))
        assert all({0, 1} == set(one) for one in seen)
        model = server.service.default
        until(lambda: len(model._instances) == 1)
        text = httpx.get(f"{server.url}/metrics").text
    assert 's2ap_model_loads_total{model="swapped",outcome="loaded",version="1"} 2.0' in text


def test_what_is_under_way_finishes_on_the_former_file(files, path, swapped, batch):
    former = swapped(batch[:1])
    with live(swapped, allow_load=True, expose_evidence=True) as server, server.connect() as connection:
        whole = server.raw(batch)
        connection.sendall(whole[:-10])
        model = server.service.default
        first = model.instance
        until(lambda: first._users == 1)
        put(files[1], path)
        assert load(server).status_code == 200
        assert model.instance is not first
        assert [first, model.instance] == model._instances
        connection.sendall(whole[-10:])
        status, headers, body = read_answer(connection)
        assert status == 200
        votes = np.frombuffer(body[int(headers["inference-header-content-length"]) :], "u1")
        assert former.votes.tobytes() in votes.tobytes()
        until(lambda: model._instances == [model.instance])


def test_a_file_that_cannot_be_used_leaves_the_former_serving(files, path, swapped, batch, caplog):
    caplog.set_level(logging.INFO)
    with live(swapped, allow_load=True) as server:
        path.write_bytes(path.read_bytes()[:1000])
        answer = load(server)
        said = f"{path} is truncated or no ONNX model; fetch or export it again; the former model serves on"
        assert (answer.status_code, answer.json()) == (500, {"error": said})
        assert server.answers(batch) == 200
        server.server.handle_exit(signal.SIGHUP, None)
        until(lambda: said in caplog.text)
        assert server.answers(batch) == 200
        put(files[1], path)
        server.server.handle_exit(signal.SIGHUP, None)
        until(lambda: "ready: model swapped, loaded and warm" in caplog.text)
        assert server.service.default.manifest.decision.purify == "suspicious"
        server.server.handle_exit(signal.SIGHUP, None)
        until(lambda: caplog.text.count("SIGHUP: keys, certificate and changed model files") == 3)
        until(lambda: not server.service.default._tasks)
        text = httpx.get(f"{server.url}/metrics").text
    for outcome, count in (("loaded", 1), ("failed", 2)):  # what has not changed is not loaded
        assert f's2ap_model_loads_total{{model="swapped",outcome="{outcome}",version="1"}} {count}.0' in text


def test_a_file_of_another_shape_takes_over(path, swapped):
    with live(swapped, allow_load=True, max_batch_rows=2) as server:
        put(shipped_file(Path("fashion")), path)
        assert load(server).status_code == 200
        metadata = httpx.get(f"{server.url}/v2/models/swapped").json()
        assert metadata["inputs"][0]["shape"] == [-1, 1, 28, 28]
        images = np.random.default_rng(0).random((1, 1, 28, 28), dtype=np.float32)
        assert server.answers(images) == 200
        assert server.answers(images[:, :, :8, :8].copy()) == 400
