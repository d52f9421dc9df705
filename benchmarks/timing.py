"""What a client's clock tells of the members that its image needed, with and without `--constant-time`.

    python benchmarks/timing.py fashion --data FOLDER

The server runs in its own process. One client with one connection asks it for one image at a time: test images of the
file's recipe, half of them with noise, which need different numbers of members; every image `--looks` times, in an
order that changes. An attacker would take the least time of its looks: the area under the ROC curve says how well that
tells images that needed more members than the fewest from those that did not; .5 is nothing.
"""

import http.client
import time
from pathlib import Path

import click
import numpy as np
from overload import request, running
from report import aligned, machine

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.options import ModelPath
from s2ap_defend.errors import DefendError
from s2ap_defend.model_file import open_model_file
from s2ap_defend.types import Float32, Float64, Int64
from s2ap_export.commands.evaluated_recipe import recipe_of
from s2ap_train.statistics.detection import roc_area

VARIANTS = {"as it is": (), "--constant-time": ("--constant-time",)}


@click.command()
@click.argument("model", type=ModelPath())
@click.option("--data", type=click.Path(path_type=Path), help="Where the data lie that the file was made with.")
@click.option("--images", "count", default=400, show_default=True)
@click.option("--looks", default=10, show_default=True, help="How often each image is asked.")
@click.option("--noise", default=0.2, show_default=True, help="Standard deviation of the noise on half of the images.")
@click.option("--threads", default=1, show_default=True)
def main(model: Path, data: Path | None, count: int, looks: int, noise: float, threads: int) -> None:
    """Time every image with both servers in turn, print the table."""
    try:
        manifest = open_model_file(model).manifest
        recipe = recipe_of(model, manifest, data=data)
        clean = recipe.load_data().test.images[:count]
        classifier = DefendedClassifier.load(model, device="cpu", threads=threads)
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    rng = np.random.default_rng(0)
    spread = np.where(np.arange(len(clean)) % 2, noise, 0.0)[:, None, None, None]
    images = np.clip(clean + spread * rng.standard_normal(clean.shape), 0, 1).astype(np.float32)
    used = np.concatenate([classifier(images[i : i + 64]).members_used for i in range(0, len(images), 64)])
    rows = [("server", "images", "looks", "p50 ms", "area, 1 look", f"area, least of {looks}")]
    for name, options in VARIANTS.items():
        with running(model, False, ("--threads", str(threads), *options)) as port:
            seconds = timed(port, model.stem, images, looks, rng)
        areas = [area(statistic, used) for statistic in (seconds[0], seconds.min(axis=0))]
        rows.append((name, str(len(images)), str(looks), f"{1e3 * np.median(seconds):.2f}", *areas))
    print("\n".join(aligned(rows)))
    counts = dict(zip(*map(np.ndarray.tolist, np.unique(used, return_counts=True)), strict=True))
    print(f"\nimages by members used: {counts}; positive: more than {used.min()}\n{machine()}")


def timed(port: int, model: str, images: Float32, looks: int, rng: np.random.Generator) -> Float64:
    """Seconds from sending each image to its answer [looks, N], after one look that is not counted."""
    seconds = np.zeros((looks + 1, len(images)))
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.connect()
    asked = [request(model, images[i : i + 1], None) for i in range(len(images))]
    for look in range(looks + 1):
        for i in rng.permutation(len(images)):
            began = time.perf_counter()
            connection.sock.sendall(asked[i])
            answer = http.client.HTTPResponse(connection.sock, method="POST")
            answer.begin()
            answer.read()
            seconds[look, i] = time.perf_counter() - began
            if answer.status != http.client.OK:
                raise click.ClickException(f"the server answered {answer.status}")
    return seconds[1:]


def area(statistic: Float64, used: Int64) -> str:
    """How well a statistic tells who needed more members than the fewest, with its 95 % interval."""
    more = used > used.min()
    found = roc_area(statistic[~more], statistic[more])
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


if __name__ == "__main__":
    main()
