"""What it is worth to store weights without their zeros: size, time to load and memory in plain ONNX Runtime.

    python benchmarks/sparse_weights.py --json benchmarks/results/sparse_weights.json

Files of untrained networks of the sizes in two recipes, the classifier dense, so many of the smallest weights of each
layer of the members zero. They are stored dense, as values and gaps (`export.sparse_weights`), and with ONNX's own
sparse tensors, their indices as short as protobuf makes them; in float16 dense and as values and gaps. Zipped is
deflate. Load is the processor's time of a session of the whole file on one thread, taken in turns, the median; memory
is that of a process of its own beyond what it had before, ready after a batch of eight images, and at most.
"""

import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch
from external_memory import defended
from latency_files import Shape
from onnx import ModelProto, SparseTensorProto, TensorProto, numpy_helper
from report import aligned, as_text, machine
from structures import unstructured
from torch import nn

from s2ap_defend.model_file import all_graphs, write_model_file
from s2ap_export.hardening.precision import to_half
from s2ap_export.tracing.trace import trace_classifier
from s2ap_train.models import Classifier, SmallCNN, fold_batch_norm
from s2ap_train.models.resnet import ResNet18

Network = Callable[[int], Classifier]


def small_cnn(*widths: int) -> Network:
    """Of the recipe fashion, by its seed."""
    return lambda seed: SmallCNN(1, 10, widths, 28, pool_after=(0, 2), seed=seed)


def resnet18(seed: int) -> Classifier:
    """Of the recipe cifar10-small."""
    return ResNet18(3, 10, width=0.25, seed=seed)


RECIPES: dict[str, tuple[Shape, Network, Network, int]] = {
    "fashion": ((1, 28, 28), small_cnn(16, 32, 32, 64, 64), small_cnn(8, 16, 16, 32), 7),
    "cifar10-small": ((3, 32, 32), resnet18, resnet18, 4),
}
"""Shape of images, classifier, member, number of members."""
LEAST_DENSE = 256
IN_A_PROCESS = """
import re, sys
import numpy, onnxruntime

def kilobytes(name):
    return int(re.search(rf"^{name}:\\s+(\\d+) kB", open("/proc/self/status").read(), re.MULTILINE)[1])

options, before = onnxruntime.SessionOptions(), kilobytes("VmRSS")
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"image": numpy.zeros((8, *session.get_inputs()[0].shape[1:]), numpy.float32)})
print(kilobytes("VmRSS") - before, kilobytes("VmHWM") - before)
"""


def stages(recipe: str, zeros: float) -> list[ModelProto]:
    """The classifier, and members with this share of zeros, traced."""
    shape, classifier, member, count = RECIPES[recipe]
    networks = [classifier(0), *(_masked(member(1 + i), zeros) for i in range(count))]
    return [trace_classifier(fold_batch_norm(network.eval()), shape, "classifier") for network in networks]


def _masked(network: Classifier, zeros: float) -> Classifier:
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight.copy_(torch.where(unstructured(1 - zeros)(layer.weight), layer.weight, 0.0))
    return network


def onnx_sparse(graph: ModelProto) -> ModelProto:
    """The graph with its weights as ONNX's sparse initialisers; protobuf shortens their indices of eight bytes."""
    made = ModelProto()
    made.CopyFrom(graph)
    for inner in all_graphs(made.graph):
        tensors = [numpy_helper.to_array(tensor) for tensor in inner.initializer]
        names = [tensor.name for tensor in inner.initializer]
        del inner.initializer[:]
        for name, array in zip(names, tensors, strict=True):
            (places,) = np.nonzero(array.reshape(-1))
            if array.dtype != np.float32 or array.size < LEAST_DENSE or 2 * len(places) > array.size:
                inner.initializer.append(numpy_helper.from_array(array, name))
                continue
            indices = TensorProto(data_type=TensorProto.INT64, dims=[len(places)], int64_data=places.tolist())
            values = numpy_helper.from_array(array.reshape(-1)[places], name)
            inner.sparse_initializer.append(SparseTensorProto(values=values, indices=indices, dims=array.shape))
    return made


def written(recipe: str, zeros: float, folder: Path) -> dict[str, Path]:
    """The files, by how their weights are stored."""
    shape, networks = RECIPES[recipe][0], stages(recipe, zeros)
    graph, manifest = defended(networks, shape)
    half, half_manifest = defended([to_half(one) for one in networks], shape, "float16")
    forms = {
        "dense": (graph, manifest),
        "sparse": (graph, manifest.model_copy(update={"sparse_weights": 0})),
        "float16": (half, half_manifest),
        "float16, sparse": (half, half_manifest.model_copy(update={"sparse_weights": 0})),
    }
    paths = {name: folder / f"{number}.onnx" for number, name in enumerate([*forms, "ONNX's own"])}
    for name, (model, said) in forms.items():
        write_model_file(model, said, paths[name])
    paths["ONNX's own"].write_bytes(onnx_sparse(graph).SerializeToString())
    return paths


def session(path: Path) -> onnxruntime.InferenceSession:
    """Plain ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def loading_ms(paths: dict[str, Path], rounds: int) -> dict[str, float]:
    """Processor time of a session of each file."""
    took: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds + 1):
        for name, path in paths.items():
            began = time.process_time()
            session(path)
            if number:
                took[name].append(time.process_time() - began)
    return {name: 1e3 * statistics.median(seconds) for name, seconds in took.items()}


def memory_mb(path: Path) -> tuple[float, float]:
    """Memory of a new process with a session of the file: ready, and at most."""
    command = [sys.executable, "-c", IN_A_PROCESS, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    ready, peak = map(int, said.stdout.split())
    return ready / 1e3, peak / 1e3


def measured(recipe: str, zeros: float, rounds: int) -> dict[str, dict[str, float | bool]]:
    """Everything about the files of one recipe with so many zeros, by how their weights are stored."""
    images = np.random.default_rng(0).random((8, *RECIPES[recipe][0]), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = written(recipe, zeros, Path(folder))
        answers = {name: session(path).run(None, {"image": images}) for name, path in paths.items()}
        loading = loading_ms(paths, rounds)
        found: dict[str, dict[str, float | bool]] = {}
        for name, path in paths.items():
            content = path.read_bytes()
            like = answers["float16" if "float16" in name else "dense"]
            ready, peak = memory_mb(path)
            found[name] = {
                "kb": len(content) / 1e3,
                "zipped_kb": len(zlib.compress(content)) / 1e3,
                "load_ms": loading[name],
                "ready_mb": ready,
                "peak_mb": peak,
                "same_bits": all(
                    one.tobytes() == other.tobytes() for one, other in zip(answers[name], like, strict=True)
                ),
            }
    return found


@click.command()
@click.option("--recipe", "recipes", multiple=True, type=click.Choice(list(RECIPES)), default=list(RECIPES))
@click.option("--zeros", multiple=True, type=click.FloatRange(0, 1), default=[0.5, 0.8, 0.9, 0.95], show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write what was measured here as well.")
def main(recipes: tuple[str, ...], zeros: tuple[float, ...], rounds: int, file: Path | None) -> None:
    """Print the table of sizes, times and memory."""
    rows: list[tuple[str, ...]] = [
        ("recipe", "zeros", "stored", "kB", "kB, zipped", "load, ms", "ready, MB", "peak, MB", "same bits"),
        ("---", "---:", "---", "---:", "---:", "---:", "---:", "---:", "---"),
    ]
    table = []
    for recipe in recipes:
        for share in zeros:
            for stored, one in measured(recipe, share, rounds).items():
                figures = (f"{one[key]:.0f}" for key in ("kb", "zipped_kb", "load_ms", "ready_mb", "peak_mb"))
                rows.append((recipe, f"{share:.0%}", stored, *figures, "yes" if one["same_bits"] else "no"))
                table.append({"recipe": recipe, "zeros": share, "stored": stored, **one})
    print(*aligned(rows), machine(), sep="\n")
    if file is not None:
        file.write_text(as_text({"rounds": rounds, "machine": machine(), "rows": table}))


if __name__ == "__main__":
    main()
