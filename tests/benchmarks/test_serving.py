"""The benchmark of the server asks all servers the same."""

import numpy as np
import pytest
from tests.runtime.serving_client import Client

from s2ap_defend.serve import ServerConfig, create_app

pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.fixture(scope="module")
def serving(benchmarks):
    import serving

    return serving


@pytest.fixture(scope="module")
def classifier(serving, tiny_model_path):
    return serving.stub(tiny_model_path)


@pytest.mark.parametrize(
    "kind", ["s2ap-defend", "s2ap-defend, JSON", "FastAPI", "FastAPI, thread", "FastAPI, thread, JSON"]
)
def test_every_server_answers_with_the_verdict_of_the_image(serving, classifier, kind):
    assert kind in serving.SERVERS
    image = np.random.default_rng(0).random((1, *classifier.input_shape), dtype=np.float32)
    head, _, body = serving.asked(kind, classifier.path.stem, image).partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = dict(one.split(": ") for one in lines)
    ours = "FastAPI" not in kind
    app = create_app(classifier, ServerConfig(model=classifier.path)) if ours else serving.bare(classifier, kind)
    with Client(app) if ours else Bare(app) as client:
        answer = client.post(line.split()[1], content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    label = int(classifier(image).label[0])
    if not ours:
        assert answer.json()["label"] == [label]
    elif "JSON" in kind:
        assert answer.json()["outputs"][0]["data"] == [label]
    else:
        start = int(answer.headers["inference-header-content-length"])
        assert np.frombuffer(answer.content[start : start + 8], "<i8").tolist() == [label]


class Bare(Client):
    """A client of an application that has nothing to start."""

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._runner.run(self._http.aclose())
        self._runner.close()


def test_the_cpu_of_a_process_is_that_of_all_its_threads_and_of_those_it_started(serving, monkeypatch, tmp_path):
    import serving_measured

    for process, parent, threads in ((9, 1, {1: 5, 2: 7}), (10, 9, {3: 11}), (11, 10, {4: 13}), (12, 1, {5: 17})):
        folder = tmp_path / str(process)
        for number, ns in threads.items():
            (folder / "task" / str(number)).mkdir(parents=True)
            (folder / "task" / str(number) / "schedstat").write_text(f"{ns} 3 4\n")
        (folder / "stat").write_text(f"{process} (a (name)) R {parent} 0\n")
    monkeypatch.setattr(serving_measured, "Path", lambda path: tmp_path / path.removeprefix("/proc").lstrip("/"))
    assert serving_measured.cpu_ns(9) == 5 + 7 + 11 + 13
