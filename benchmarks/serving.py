"""What the server itself costs a request at batch 1, next to a bare FastAPI app, with a model that takes no time.

    python benchmarks/serving.py fashion

Each server runs in its own process, on uvicorn with uvloop and httptools, and answers one client that waits for every
answer. Rounds alternate between the servers in one run, so that what else the machine does meets all of them; the
ratio is the median over rounds. CPU is that of the server's process, all of its threads, by the kernel's account of
what they ran (Linux). The FastAPI app reads the same bytes as an array, asks the same model and answers with a dict: it
has no batcher, no checks, no metrics and no limits. It does so on the event loop, which answers nobody while a model
runs, or, as a model needs it and as FastAPI runs functions that are not async, on a thread; with JSON, pydantic reads a
list of numbers.

LitServe and KServe's SDK answer, too, where an interpreter has them; CPU is that of all their processes then:

    python -m venv others && others/bin/pip install litserve kserve
    python benchmarks/serving.py fashion --python others/bin/python
"""

import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Annotated, Any

import click
import numpy as np
import orjson
import uvicorn
from fastapi import Body, FastAPI, Request
from pydantic import BaseModel
from serving_measured import Measured, served

from s2ap_defend import DefendedClassifier
from s2ap_defend.executors import Executor, ExecutorName
from s2ap_defend.serve import ServerConfig, create_app
from s2ap_defend.serve.logs import written_log
from s2ap_defend.serve.server import KEEP_ALIVE_S, SWITCH_INTERVAL_S, Server, listen
from s2ap_defend.shipped import shipped_file
from s2ap_defend.types import Float32, Verdicts

BYTES = "application/octet-stream"
BASE = "FastAPI, thread"  # what answers others while its model runs
GOAL = 0.5  # of its CPU
PEERS = {"LitServe, JSON": ("litserve", "/health"), "KServe, JSON": ("kserve", "/v2/health/ready")}
"""The package of each, and where it says that it is ready."""
SERVERS = (
    *("s2ap-defend", "s2ap-defend, access log", "s2ap-defend, JSON"),
    *("FastAPI", "FastAPI, thread", "FastAPI, thread, JSON"),
)


class StubExecutor:
    """Says of every image what the executor of a file says of a grey one, at once."""

    name: ExecutorName = "whole"

    def __init__(self, executor: Executor, shape: tuple[int, int, int]) -> None:
        self.provider = executor.provider
        self._said = executor.run(np.full((1, *shape), 0.5, dtype=np.float32))

    def run(self, images: Float32) -> Verdicts:
        """The verdicts, as many as there are images."""
        return self._said if len(images) == 1 else self._said.rows(np.zeros(len(images), dtype=np.int64))


def stub(model: Path) -> DefendedClassifier:
    """The classifier of a file whose model takes no time."""
    classifier = DefendedClassifier.load(model, device="cpu", threads=1, executor="whole")
    classifier.executor = StubExecutor(classifier.executor, classifier.input_shape)
    return classifier


class Question(BaseModel):
    """An image as JSON."""

    image: list[float]


def bare(classifier: DefendedClassifier, kind: str) -> FastAPI:
    """What one would write without this package."""
    app = FastAPI()
    shape = classifier.input_shape

    def ask(images: Float32) -> dict[str, Any]:
        verdicts = classifier(images.reshape(-1, *shape))
        return {
            "label": verdicts.label.tolist(),
            "adversarial": verdicts.adversarial.tolist(),
            "abstained": verdicts.abstained.tolist(),
        }

    async def on_the_loop(request: Request) -> dict[str, Any]:
        return ask(np.frombuffer(await request.body(), dtype=np.float32))

    def on_a_thread(image: Annotated[bytes, Body(media_type=BYTES)]) -> dict[str, Any]:
        return ask(np.frombuffer(image, dtype=np.float32))

    def from_json(question: Question) -> dict[str, Any]:
        return ask(np.array(question.image, dtype=np.float32))

    app.post("/infer")({"FastAPI": on_the_loop, "FastAPI, thread": on_a_thread}.get(kind, from_json))
    return app


def asked(kind: str, model: str, images: Float32) -> bytes:
    """A request for one image."""
    numbers, headers = images.ravel().tolist(), f"Content-Type: {BYTES}\r\n"
    body, path = images.tobytes(), "/infer"
    if "JSON" in kind:
        headers = "Content-Type: application/json\r\n"
        body = orjson.dumps({"image": numbers})
    if "LitServe" in kind:
        path = "/predict"
    elif "FastAPI" not in kind:
        path = f"/v2/models/{model}/infer"
        if "JSON" in kind:
            tensor = {"name": "image", "datatype": "FP32", "shape": images.shape, "data": numbers}
            body = orjson.dumps({"inputs": [tensor]})
        else:
            headers += "Inference-Header-Content-Length: 0\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def serve(kind: str, model: Path) -> None:
    """Serve until SIGTERM."""
    classifier = stub(model)
    with written_log("json"), listen("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], flush=True)
        if "FastAPI" in kind:
            config = uvicorn.Config(
                bare(classifier, kind),
                loop="uvloop",
                http="httptools",
                access_log=False,
                log_config=None,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
            uvicorn.Server(config).run(sockets=[listener])
        else:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            settings = ServerConfig(model=model, drain_delay_s=0.0, access_log="log" in kind)
            app = create_app(classifier, settings)
            Server(app, app.state.service, settings).run(sockets=[listener])


def measured(kind: str, model: Path, images: Float32) -> AbstractContextManager[Measured]:
    """A server of this file."""
    ready = "/openapi.json" if "FastAPI" in kind else "/v2/health/ready"
    command = [sys.executable, __file__, str(model), "--only-serve", kind]
    return served(command, ready, asked(kind, model.stem, images))


def peers(interpreters: Sequence[str], images: Float32) -> Iterator[tuple[str, AbstractContextManager[Measured]]]:
    """Servers of others, by name; it is said which of them no interpreter has."""
    for name, (package, ready) in PEERS.items():
        for python in (sys.executable, *interpreters):
            if not subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode:  # noqa: S603 - named by who measures
                with socket.create_server(("127.0.0.1", 0)) as unused:
                    port = unused.getsockname()[1]
                command = [python, Path(__file__).with_name(f"serving_{package}.py"), str(port)]
                yield name, served(command, ready, asked(name, "stub", images), port)
                break
        else:
            print(f"{name} is not measured: {package} is not installed; --python names an interpreter that has it")


@click.command()
@click.argument("model")
@click.option("--requests", default=300, show_default=True, help="Of a round.")
@click.option("--rounds", default=15, show_default=True, help="Of each server.")
@click.option("--python", multiple=True, help="Interpreter that has LitServe, or KServe's SDK; once for each.")
@click.option("--only-serve", hidden=True)
def main(model: str, requests: int, rounds: int, python: tuple[str, ...], only_serve: str | None) -> None:
    """Measure what the server of MODEL costs itself."""
    path = shipped_file(Path(model))
    if only_serve is not None:
        serve(only_serve, path)
        return
    from report import aligned, machine  # imports torch, which no server needs

    shape = DefendedClassifier.load(path, device="cpu", threads=1, executor="whole").input_shape
    images = np.random.default_rng(0).random((1, *shape), dtype=np.float32)
    print(f"{machine()}\n{rounds} alternating rounds of {requests} requests, one image {shape} each")
    with ExitStack() as stack:
        all_servers = {**{kind: measured(kind, path, images) for kind in SERVERS}, **dict(peers(python, images))}
        servers = {kind: stack.enter_context(server) for kind, server in all_servers.items()}
        for server in servers.values():
            server.round(requests)
            server.cpu_us.clear()
            server.wall_us.clear()
        for _ in range(rounds):
            for server in servers.values():
                server.round(requests)
    base = servers[BASE]
    rows = [("server", "CPU us a request", "ratio", "answer p50 us", "ratio")]
    for kind, server in servers.items():
        cells = []
        for own, others in ((server.cpu_us, base.cpu_us), (server.wall_us, base.wall_us)):
            ratio = statistics.median(a / b for a, b in zip(own, others, strict=True))
            cells += [f"{statistics.median(own):.0f}", f"{ratio:.2f}"]
        rows.append((kind, *cells))
    print("\n".join(aligned(rows)))
    print(f"ratio: to {BASE}; goal: at most {GOAL:g} of its CPU")


if __name__ == "__main__":
    main()
