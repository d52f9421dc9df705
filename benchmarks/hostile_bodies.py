"""How long health checks wait while hostile bodies keep the server busy.

    python benchmarks/hostile_bodies.py fashion

The server runs in its own process. Eight clients, processes of their own that give way to it (as clients on other
machines would not take its processor), send it one body after the other, without a pause: 32 kB of gzip that are 33
MB of empty lists, or the JSON numbers of 500 images, or of 1,500, which are more than its queue takes. Meanwhile one
connection asks for its health every 5 ms. Goal: 99 % of these answers within 50 ms, whatever is sent.
"""

import gzip
import json
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from http.client import HTTPConnection
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

import click
import numpy as np
from overload import running
from report import aligned, machine

from s2ap_defend.commands.options import model_argument
from s2ap_defend.model_file import open_model_file

CLIENTS = 8
PAUSE_S = 0.005
GOAL_MS = 50.0
LISTS = 11_000_000
IMAGES = (500, 1500)
HEADER = ("clients send", "health checks", "p50 ms", "p99 ms", "longest ms", "answers to them")


def lists(shape: Sequence[int]) -> bytes:
    """A JSON body of far more lists than an image of this shape [C, H, W] has pixels, compressed."""
    data = b"[]," * LISTS + b"[]"
    return gzip.compress(_around([1, *shape], data))


def numbers(images: int, shape: Sequence[int]) -> bytes:
    """A JSON body of images of this shape [C, H, W]."""
    return _around([images, *shape], b",".join([b"0.123456789"] * (images * math.prod(shape))))


def _around(shape: Sequence[int], data: bytes) -> bytes:
    tensor = json.dumps({"name": "image", "shape": list(shape), "datatype": "FP32"}).encode()
    return b'{"inputs":[%b,"data":[%b]}]}' % (tensor[:-1], data)


def send(port: int, name: str, body: bytes, stop: Event, statuses: "SimpleQueue[int]") -> None:
    """Send a body again and again, each on a connection of its own."""
    os.nice(10)
    headers = {"Content-Type": "application/json"} | ({"Content-Encoding": "gzip"} if body[:2] == b"\x1f\x8b" else {})
    while not stop.is_set():
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", f"/v2/models/{name}/infer", body, headers)
        statuses.put(connection.getresponse().status)
        connection.close()


def health(port: int, seconds: float) -> np.ndarray:
    """Milliseconds that each health check took, ascending."""
    connection, took, until = HTTPConnection("127.0.0.1", port), [], time.time() + seconds
    while time.time() < until:
        begun = time.perf_counter()
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        took.append(time.perf_counter() - begun)
        time.sleep(PAUSE_S)
    return 1e3 * np.sort(took)


def measured(port: int, name: str, words: str, body: bytes | None, seconds: float) -> tuple[str, ...]:
    """One row of the table."""
    spawn = get_context("spawn")
    statuses: SimpleQueue[int] = spawn.SimpleQueue()
    stop, answers = spawn.Event(), Counter[int]()
    clients = [spawn.Process(target=send, args=(port, name, body, stop, statuses)) for _ in range(CLIENTS)]
    for client in clients if body else ():
        client.start()
    for _ in clients if body else ():
        answers[statuses.get()] += 1  # they are at work
    took = health(port, seconds)
    stop.set()
    while any(client.pid and client.is_alive() for client in clients) or not statuses.empty():
        if statuses.empty():
            time.sleep(PAUSE_S)
        else:
            answers[statuses.get()] += 1
    said = ", ".join(f"{count} times {status}" for status, count in sorted(answers.items())) or "-"
    shares = (f"{np.percentile(took, share):.1f}" for share in (50, 99, 100))
    return (words, str(len(took)), *shares, said)


@click.command()
@model_argument
@click.option("--seconds", default=25.0, show_default=True, help="Of each row.")
def main(model: Path, seconds: float) -> None:
    """Measure how long the health checks of MODEL's server wait."""
    shape = open_model_file(model).manifest.input.shape
    bombs = lists(shape)
    print(machine())
    with running(model, False, ()) as port:
        rows = [
            measured(port, model.stem, words, body, seconds)
            for words, body in (
                ("nothing", None),
                (f"{len(bombs) / 1e3:.0f} kB of gzip, {3 * LISTS / 1e6:.0f} MB of lists", bombs),
                *((f"JSON numbers of {images} images", numbers(images, shape)) for images in IMAGES),
            )
        ]
    print("\n".join(aligned([HEADER, ("---",) * len(HEADER), *rows])))
    print(f"99 % within {GOAL_MS:.0f} ms: {'yes' if all(float(row[3]) <= GOAL_MS for row in rows) else 'no'}")


if __name__ == "__main__":
    main()
