"""What the staged executor costs next to the whole file, and how much of it is spent outside the engines.

    python benchmarks/staged.py build/model.onnx --data images.npy

Written down before changing, from a profile of a digits file (13 members, suspicious images purified) on one thread.
Each of the five engines of the opening starts for the same images, about 8 microseconds a run besides its work; between
waves rows are taken apart and joined, 20 arrays at a time, which is half of what the host does with 64 images.

    batch 1     one engine of several outputs for the opening: 5 runs become 1, staged / whole from 1.3 to about 1.0
    batch 64    rows are parted only where it pays: outside the engines from 19 % of the time to 9 %

The rest is the decision in numpy, some 100 small operations a wave, which this does not change. One thread, in seconds
of the processor; whole, staged and the bare classifier take turns on each batch, which counts with its median over the
rounds. Smaller batches are parts of 64 images.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import click
import numpy as np
from report import aligned, machine

from s2ap_defend import DefendedClassifier
from s2ap_defend.bench.measured import BARE
from s2ap_defend.bench.traffic import find_traffic
from s2ap_defend.engines import Array
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.images import ImageFiles
from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import CLASSIFIER, cut_stage
from s2ap_defend.types import Float32

SHOWN = 64
EXECUTORS = ("whole", "staged")
HEADER = (
    "batch",
    "whole, x bare",
    "staged, x bare",
    "staged / whole",
    "outside: whole",
    "staged",
    "microseconds",
    "runs",
)


class Engines:
    """What was spent inside engines since the last reset; counted within `with`."""

    def __init__(self) -> None:
        self.runs, self.seconds = 0, 0.0
        self._run = OnnxRuntimeEngine.run

    def __enter__(self) -> Self:
        def counted(engine: OnnxRuntimeEngine, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[np.ndarray]:
            began = time.thread_time()
            said = self._run(engine, feeds, outputs)
            self.seconds += time.thread_time() - began
            self.runs += 1
            return said

        OnnxRuntimeEngine.run = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        OnnxRuntimeEngine.run = self._run  # type: ignore[method-assign]

    def timed(self, run: Callable[[Float32], object], images: Float32) -> tuple[float, float, int]:
        """Seconds of a call, those of them inside engines, and their runs."""
        self.runs, self.seconds = 0, 0.0
        began = time.thread_time()
        run(images)
        return time.thread_time() - began, self.seconds, self.runs


def row(batch: int, images: Float32, runs: Mapping[str, Callable[[Float32], object]], rounds: int) -> tuple[str, ...]:
    """The line of one batch size."""
    parts = [np.ascontiguousarray(images[at : at + batch]) for at in range(0, len(images), batch)]
    with Engines() as engines:
        took = [
            [[engines.timed(run, part) for run in runs.values()] for part in parts] for _ in range(rounds + 1)
        ]  # the first round warms up
    typical = np.median(took[1:], axis=0).mean(axis=0)
    whole, staged, bare = (dict(zip(runs, typical, strict=True))[name] for name in (*EXECUTORS, BARE))
    return (
        str(batch),
        *(f"{one[0] / bare[0]:.2f}" for one in (whole, staged)),
        f"{staged[0] / whole[0]:.3f}",
        *(f"{1 - one[1] / one[0]:.1%}" for one in (whole, staged)),
        f"{1e6 * (staged[0] - staged[1]):.0f}",
        f"{staged[2]:.1f}",
    )


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="Clean images, as for s2ap-defend bench.")
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8, 64), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
def main(model: Path, data: tuple[Path, ...], batches: tuple[int, ...], rounds: int) -> None:
    """Print multiples of the bare classifier, staged over whole, and the share of the time outside the engines."""
    file = open_model_file(model)
    bare = OnnxRuntimeEngine(cut_stage(file.proto, CLASSIFIER).SerializeToString(), device="cpu", threads=1)
    runs: dict[str, Callable[[Float32], object]] = {
        name: DefendedClassifier.load(model, device="cpu", threads=1, executor=name)  # type: ignore[arg-type]
        for name in EXECUTORS
    }
    runs[BARE] = lambda images: bare.run({"image": images}, ["log_probabilities"])
    files = ImageFiles(file.manifest.input.shape)
    traffic = find_traffic("clean", files, model, data=data, attacked=(), most=max(SHOWN, *batches))
    rows: list[tuple[str, ...]] = [HEADER, ("---", *["---:"] * (len(HEADER) - 1))]
    rows += [row(batch, traffic.first(max(SHOWN, batch)), runs, rounds) for batch in batches]
    print(*aligned(rows), machine(), sep="\n")


if __name__ == "__main__":
    main()
