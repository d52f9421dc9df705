"""Images a second of one and of two replicas on Ray Serve, behind Ray's proxy.

    python benchmarks/replicas.py fashion --json FILE

Starts a Ray cluster on this machine, deploys the file with one replica and with two in turn, and lets clients that each
wait for their answer ask for some seconds. A replica has one thread. Clients, proxy and replicas share the cores, so
two replicas can be twice as fast only where there are cores enough for all of them.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import ray
from overload import Clients, capacity, request
from ray import serve
from report import aligned, as_text, machine

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.options import model_argument
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.serve.ray import Settings, app

REPLICAS = (1, 2)
PORT = 8765


@click.command()
@model_argument
@click.option("--images", default=8, show_default=True, help="Images of a request; 64 clients ask at a time.")
@click.option("--rounds", default=3, show_default=True, help="Times that each number of replicas is measured.")
@click.option("--seconds", default=10.0, show_default=True, help="Of one measurement.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures here.")
def main(model: Path, images: int, rounds: int, seconds: float, output: Path | None) -> None:
    """Measure the throughput of replicas."""
    if output is not None:
        check_writable(output)
    shape = DefendedClassifier.load(model).input_shape
    asked = request(model.stem, np.random.default_rng(0).random((images, *shape), dtype=np.float32), None)
    ray.init(namespace="serve", log_to_driver=False, logging_level="ERROR")
    found: dict[int, list[float]] = {count: [] for count in REPLICAS}
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        for number in range(rounds):
            for count in REPLICAS if number % 2 == 0 else REPLICAS[::-1]:
                found[count].append(images * measured(model, count, asked, seconds))
                click.echo(f"round {number + 1}, {count} replicas: {found[count][-1]:.0f} images a second")
    finally:
        serve.shutdown()
        ray.shutdown()
    document = as_document(model, images, seconds, found)
    header = ("replicas", "images/s, median", "of one replica")
    rows = [(str(one["replicas"]), f"{one['median']:.0f}", f"{one['ratio']:.2f}") for one in document["rows"]]
    print("\n".join(aligned([header, *rows])))
    if output is not None:
        replace_file(output, as_text(document).encode())


def measured(model: Path, replicas: int, asked: bytes, seconds: float) -> float:
    """Requests a second that so many replicas answer, once all of them are warm."""
    serve.run(app(Settings(model=model.resolve(), replicas=replicas, server={"threads": 1})), name="measured")
    time.sleep(2)  # until the proxy knows all replicas
    return asyncio.run(_asked(asked, seconds))


async def _asked(asked: bytes, seconds: float) -> float:
    await capacity(Clients(PORT), asked, 2)
    return await capacity(Clients(PORT), asked, seconds)


def as_document(model: Path, images: int, seconds: float, found: dict[int, Sequence[float]]) -> dict[str, Any]:
    """The figures as JSON values."""
    one = median(found[REPLICAS[0]])
    return {
        "command": "benchmarks/replicas.py",
        "model": model.name,
        "images_a_request": images,
        "seconds": seconds,
        "machine": machine(),
        "rows": [
            {"replicas": count, "images_a_second": list(each), "median": median(each), "ratio": median(each) / one}
            for count, each in found.items()
        ],
    }


if __name__ == "__main__":
    main()
