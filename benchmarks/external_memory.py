"""Resident memory of a file of many members, as one file and with its weights in a file of their own.

    python benchmarks/external_memory.py --members 100

The classifier and all members are untrained ResNet18 of a quarter of their width on 3x32x32 images, 2.8 MB of weights
each. Every row is a process of its own: memory beyond what it had before the file was opened, when it has run three
batches of eight images, and at most. Pages of a mapped file count as resident while nobody else wants the memory.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from latency_files import OFF, Shape, untrained_purifier
from onnx import ModelProto
from report import aligned, machine

from s2ap_defend.bench.memory import measure_memory
from s2ap_defend.executors import USUAL
from s2ap_defend.manifest import Manifest
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.precision_record import Precision, PrecisionRecord
from s2ap_export.graph.compose import compose
from s2ap_export.tracing.trace import trace_classifier
from s2ap_train.models import fold_batch_norm
from s2ap_train.models.resnet import ResNet18

GOLDEN = Path(__file__).parents[1] / "tests" / "contract" / "golden" / "version-4.onnx"
SHAPE = (3, 32, 32)


def write_many(folder: Path, members: int, width: float) -> dict[str, Path]:
    """Write a file of so many members twice; by how its weights are stored."""
    networks = [fold_batch_norm(ResNet18(SHAPE[0], 10, width=width, seed=seed).eval()) for seed in range(1 + members)]
    graph, manifest = defended([trace_classifier(network, SHAPE, "classifier") for network in networks], SHAPE)
    paths = {"one file": folder / "one.onnx", "a file of their own": folder / "apart.onnx"}
    for path, external in zip(paths.values(), (False, True), strict=True):
        write_model_file(graph, manifest, path, external_data=external)
    return paths


def defended(
    stages: Sequence[ModelProto], shape: Shape, precision: Precision = "float32"
) -> tuple[ModelProto, Manifest]:
    """The graph and manifest of a classifier and members, in this order, that purifies nothing and asks all members."""
    members = len(stages) - 1
    manifest = _manifest(members, shape, precision)
    purifier, sees = untrained_purifier(shape, OFF), ["raw"] * members
    return compose(purifier, stages[0], stages[1:], manifest.to_test(), sees=sees, purify="off"), manifest


def _manifest(members: int, shape: Shape, precision: Precision) -> Manifest:
    """That of a golden file, with so many members, who are asked all."""
    known = open_model_file(GOLDEN).manifest
    changes = {"sees": "raw", "vote_weight": 1.0, "role": "juror", "precision": precision}
    member = known.members[0].model_copy(update=changes)
    tables = known.test.model_copy(
        update={
            "evidence": "margin",
            "edges": ((0.5,),) * members,
            "increments": ((0.0, 0.0),) * members,
            "lower": (None,) * members,
            "upper": (None,) * members,
            "truncation": "sign",
            "opening": 2,
            "signals": (),
            "waves": tuple(min(10, members - first) for first in range(0, members, 10)),
        }
    )
    return known.model_copy(
        update={
            "input": known.input.model_copy(update=dict(zip(("channels", "height", "width"), shape, strict=True))),
            "members": (member,) * members,
            "test": tables,
            "decision": known.decision.model_copy(update={"answer": "robust", "purify": "off"}),
            "purifier": known.purifier.model_copy(update={"sigmas": (), "steps": 0, "rho": 0.0}),
            "precision": None if precision == "float32" else PrecisionRecord(classifier=precision, comparison=None),
        }
    )


@click.command()
@click.option("--members", type=click.IntRange(2), default=100, show_default=True)
@click.option("--width", type=float, default=0.25, show_default=True, help="Of the networks.")
def main(members: int, width: float) -> None:
    """Print resident memory, in multiples of the weights and in MB."""
    rows: list[tuple[str, ...]] = [("weights in", "executor", "ready, MB", "peak, MB"), ("---", "---", "---:", "---:")]
    images = np.random.default_rng(0).random((8, *SHAPE), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_many(Path(folder), members, width)
        print(f"{members} members, {open_model_file(paths['one file']).size_bytes / 1e6:.0f} MB")
        for stored, path in paths.items():
            for executor in USUAL:
                found = measure_memory(path, executor, images, "cpu", 1)
                if found is not None:
                    sizes = (f"{size / 1e6:.0f}" for size in (found.ready_bytes, found.peak_bytes))
                    rows.append((stored, executor, *sizes))
    print(*aligned(rows), machine(), sep="\n")


if __name__ == "__main__":
    main()
