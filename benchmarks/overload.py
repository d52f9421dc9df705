"""What a server answers in time when it is asked for more than it can do.

    python benchmarks/overload.py build/model.onnx

The server runs in its own process. Its capacity is what many clients get that each wait for their answer. Then requests
come at random times, at a multiple of that rate, whoever still waits; each carries `timeout`, and counts if its answer
is there within it by the client's clock. Goal: at least 85 % of the capacity, whatever the load and the timeout.

With `--steady` the model waits 5 ms and 4 ms for each image instead of all but the first: the capacity is then the same
whatever else the machine does, and the figures are those of the server alone.
"""

import asyncio
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import orjson
import uvloop
from report import aligned, machine

from s2ap_defend import DefendedClassifier
from s2ap_defend.model_file import open_model_file
from s2ap_defend.serve import ServerConfig, create_app
from s2ap_defend.serve.server import SWITCH_INTERVAL_S, Server, listen
from s2ap_defend.types import Float32, Verdicts

LOADS = (1.2, 2.0, 5.0)
TIMEOUTS_S = (0.5, 1.0, 2.0, None)
GOAL = 0.85
MOST_CONNECTIONS = 480
HEADER = (
    "load",
    "timeout",
    "asked/s",
    "capacity/s",
    "in time/s",
    "of it",
    "late",
    "429",
    "504",
    "other",
    "p50 ms",
    "p99 ms",
)


class SteadyClassifier(DefendedClassifier):
    """A defended classifier that takes the time of a machine with nothing else to do."""

    def __call__(self, images: Float32) -> Verdicts:
        """Classify one image, and wait as if all had been."""
        until = time.perf_counter() + 0.005 + 0.004 * len(images)
        verdicts = super().__call__(images[:1]).rows(np.zeros(len(images), dtype=np.int64))
        time.sleep(max(0.0, until - time.perf_counter()))
        return verdicts


def serve_steadily(model: Path) -> None:
    """Serve the steady classifier until SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    classifier = SteadyClassifier.load(model, device="cpu", threads=1, executor="whole")
    config = ServerConfig(model=model, drain_delay_s=0.0)
    app = create_app(classifier, config)
    with listen("127.0.0.1", 0) as listener:
        logging.info("listening on http://127.0.0.1:%d", listener.getsockname()[1])
        Server(app, app.state.service, config).run(sockets=[listener])


@contextmanager
def running(model: Path, steady: bool, options: tuple[str, ...]) -> Iterator[int]:
    """A server in its own process: its port."""
    command = [sys.executable, "-m", "s2ap_defend", "serve", str(model), "--port", "0", "--drain-delay", "0", *options]
    if steady:
        command = [sys.executable, __file__, str(model), "--only-serve"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
        port = 0
        try:
            for line in process.stderr or ():
                found = re.search(r"listening on http://127.0.0.1:(\d+)", line)
                port = int(found[1]) if found else port
                if "ready: model" in line:
                    break
            else:
                raise click.ClickException("the server did not start")
            yield port
        finally:
            process.terminate()


@dataclass
class Clients:
    """Connections to one server, used again when they are free."""

    port: int
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    opened: int = 0

    async def ask(self, request: bytes) -> int:
        """Status of an answer; 0 when there are too many requests under way to send another one."""
        if not self.free and self.opened >= MOST_CONNECTIONS:
            return 0
        if self.free:
            reader, writer = self.free.pop()
        else:
            self.opened += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head)
        await reader.readexactly(int(found[1]) if found else 0)
        self.free.append((reader, writer))
        return int(head[9:12])


def request(model: str, images: np.ndarray, timeout_s: float | None) -> bytes:
    """An inference request with binary data."""
    tensor = {"name": "image", "shape": images.shape, "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": images.nbytes}
    parameters = {} if timeout_s is None else {"timeout": int(timeout_s * 1e6)}
    head = orjson.dumps({"inputs": [tensor], "parameters": parameters})
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {len(head)}\r\n"
        f"Content-Length: {len(head) + images.nbytes}\r\n\r\n"
    )
    return lines.encode() + head + images.tobytes()


async def capacity(clients: Clients, asked: bytes, seconds: float) -> float:
    """Answers a second to clients that wait for theirs."""
    answered = 0
    until = time.perf_counter() + seconds

    async def one() -> None:
        nonlocal answered
        while time.perf_counter() < until:
            status = await clients.ask(asked)
            answered += status == 200 and time.perf_counter() < until

    await asyncio.gather(*(one() for _ in range(64)))
    return answered / seconds


async def overload(
    clients: Clients, asked: bytes, rate: float, seconds: float, rng: np.random.Generator
) -> list[tuple[int, float]]:
    """Status and seconds of answers to requests that come at random times; those of the first second do not count."""
    found: list[tuple[int, float]] = []

    async def one() -> None:
        began = time.perf_counter()
        status = await clients.ask(asked)
        if 1.0 <= time.perf_counter() - begin < seconds + 1.0:
            found.append((status, time.perf_counter() - began))

    begin, due = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        while due < seconds + 1.0:
            wait = begin + due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            group.create_task(one())
            due += float(rng.exponential(1.0 / rate))
    return found


async def measure(
    port: int,
    model: str,
    images: np.ndarray,
    seconds: float,
    loads: Sequence[float],
    timeouts_s: Sequence[float | None],
) -> None:
    """Print the table."""
    clients, rng = Clients(port), np.random.default_rng(0)
    plain = request(model, images, None)
    await capacity(clients, plain, 1.0)
    rows = [HEADER]
    missed = 0
    for timeout_s in timeouts_s:
        for load in loads:
            full = await capacity(clients, plain, seconds / 2)  # again: the machine may not be ours alone
            found = await overload(clients, request(model, images, timeout_s), load * full, seconds, rng)
            took = np.array([second for status, second in found if status == 200])
            good = int((took <= (timeout_s or np.inf)).sum())
            counts = {status: sum(one == status for one, _ in found) for status in (200, 429, 504)}
            missed += timeout_s is not None and good / seconds < GOAL * full
            rows.append(
                (
                    f"{load:g}x",
                    "none" if timeout_s is None else f"{timeout_s:g} s",
                    f"{len(found) / seconds:.0f}",
                    f"{full:.0f}",
                    f"{good / seconds:.0f}",
                    f"{good / seconds / full:.0%}",
                    str(counts[200] - good),
                    str(counts[429]),
                    str(counts[504]),
                    str(len(found) - sum(counts.values())),
                    *(f"{1e3 * np.quantile(took, q):.0f}" if len(took) else "-" for q in (0.5, 0.99)),
                )
            )
    print("\n".join(aligned(rows)))
    print(f"goal of {GOAL:.0%} with a timeout: {'missed ' + str(missed) + ' times' if missed else 'met'}")


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--rows", default=8, show_default=True, help="Images of a request.")
@click.option("--seconds", default=5.0, show_default=True, help="Length of each measurement.")
@click.option("--load", "loads", type=float, multiple=True, default=LOADS, show_default=True, help="Of capacity.")
@click.option("--timeout", "timeouts", type=float, multiple=True, help="Seconds; .5, 1, 2 and none without it.")
@click.option("--option", "options", multiple=True, help="Further options of serve, such as --option=--threads=1.")
@click.option("--steady", is_flag=True, help="A model that takes the same time whatever the machine does.")
@click.option("--only-serve", is_flag=True, hidden=True)
def main(
    model: Path,
    rows: int,
    seconds: float,
    loads: tuple[float, ...],
    timeouts: tuple[float, ...],
    options: tuple[str, ...],
    steady: bool,
    only_serve: bool,
) -> None:
    """Measure what MODEL's server answers in time under overload."""
    if only_serve:
        serve_steadily(model)
        return
    shape = open_model_file(model).manifest.input.shape
    images = np.random.default_rng(1).random((rows, *shape), dtype=np.float32)
    print(machine())
    with running(model, steady, options) as port:
        uvloop.run(measure(port, model.stem, images, seconds, loads, timeouts or TIMEOUTS_S))


if __name__ == "__main__":
    main()
