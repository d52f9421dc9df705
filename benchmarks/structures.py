"""What structures of pruned weights are worth on engines: kernels that run, and time over that of dense weights.

    python benchmarks/structures.py --json benchmarks/results/structures.json

A ResNet18 of half its width on 3x32x32 images, untrained: time does not depend on what weights say, but for zeros that
an engine looks for. All structures and engines take turns on one batch, a call each, in seconds of the processor on one
thread; a ratio is the median over the rounds of one round's ratio. Kernels are those that the engine names: ONNX
Runtime in the graph that it optimised for this machine, PyTorch in its profile. Then whole files whose eight members
have the structure and whose classifier is dense, without a purifier: images stop after the first wave of four or never.
"""

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from latency_files import built
from report import aligned, as_text, machine
from torch import Tensor, nn

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_export.tracing.trace import trace_classifier
from s2ap_train.compute.threads import one_thread
from s2ap_train.models import fold_batch_norm
from s2ap_train.models.resnet import ResNet18
from s2ap_train.onnx_graphs.onnx_module import torch_stage

SHAPE = (3, 32, 32)
DENSE = "dense"
MEMBERS = 8
_CALLERS = {"aten::conv2d", "aten::convolution", "aten::_convolution", "aten::thnn_conv2d"}
"""What PyTorch's profile counts besides the kernels that they call."""
Masking = Callable[[Tensor], Tensor]


def unstructured(kept: float) -> Masking:
    """The largest weights of a layer."""
    return lambda weight: weight.abs() > torch.quantile(weight.abs().flatten(), 1 - kept)


def two_of_four(weight: Tensor) -> Tensor:
    """The larger two of every four inputs; a layer whose inputs are no multiple of four stays dense."""
    outputs, inputs, *window = weight.shape
    if inputs % 4:
        return torch.ones_like(weight, dtype=torch.bool)
    groups = weight.abs().reshape(outputs, inputs // 4, 4, *window)
    order = groups.argsort(dim=2, descending=True).argsort(dim=2)
    return (order < 2).reshape(weight.shape)


def masked(mask: Masking, width: float) -> nn.Module:
    """The network with zeros in its convolutions."""
    network = _network(width)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(mask(layer.weight))
    return network


def structures(width: float) -> dict[str, nn.Module]:
    """Networks by the structure of their weights."""
    return {
        DENSE: _network(width),
        "half of the channels removed": _network(width / 2),
        "2:4 of the inputs": masked(two_of_four, width),
        "unstructured, 90 % zero": masked(unstructured(0.1), width),
        "unstructured, 99 % zero": masked(unstructured(0.01), width),
    }


def _network(width: float) -> nn.Module:
    return fold_batch_norm(ResNet18(SHAPE[0], 10, width=width, seed=0).eval())


def onnxruntime_run(stage: onnx.ModelProto, images: np.ndarray) -> tuple[Callable[[], object], str]:
    """A call of the stage, and the kernels of its convolutions."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "optimised.onnx")
        engine = OnnxRuntimeEngine(stage.SerializeToString(), device="cpu", threads=1, save_to=saved)
        nodes = onnx.load(saved).graph.node
    kernels = Counter(f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in nodes if "Conv" in node.op_type)
    return lambda: engine.run({"image": images}, ["log_probabilities"]), _names(kernels)


def torch_run(stage: onnx.ModelProto, images: np.ndarray) -> tuple[Callable[[], object], str]:
    """The same on PyTorch."""
    function, x = torch_stage(stage), torch.from_numpy(images)

    def call() -> object:
        with torch.inference_mode():
            return function(x)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    found = {event.key: event.count for event in profile.key_averages() if "conv" in event.key}
    inner = {name: count for name, count in found.items() if name not in _CALLERS}
    return call, _names(Counter(inner))


ENGINES = {"ONNX Runtime, CPU": onnxruntime_run, "PyTorch, CPU": torch_run}


def ratios(runs: dict[tuple[str, str], Callable[[], object]], rounds: int) -> dict[tuple[str, str], float]:
    """Median over rounds of the time of each over that of the dense network on the same engine."""
    took: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for number in range(rounds + 1):
        for key, run in runs.items():
            began = time.process_time()
            run()
            if number:
                took[key].append(time.process_time() - began)
    return {
        (name, engine): statistics.median(one / dense for one, dense in zip(seconds, took[DENSE, engine], strict=True))
        for (name, engine), seconds in took.items()
    }


def defended(stages: dict[str, onnx.ModelProto], images: np.ndarray) -> dict[tuple[str, str], Callable[[], object]]:
    """Calls of whole files by the structure of their members, and by executor and members asked."""
    runs = {}
    for name, stage in stages.items():
        for asked, asks_all in (("four", False), ("all eight", True)):
            file = built(SHAPE, MEMBERS, asks_all=asks_all, networks=[stages[DENSE], *[stage] * MEMBERS])
            for executor in ("whole", "staged"):
                (runs[name, f"{executor}, {asked} asked"],) = file.variants(images)[executor]
    return runs


def _names(kernels: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(kernels.items())) or "none"


@click.command()
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option("--width", type=float, default=0.5, show_default=True, help="Of the network.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write what was measured here as well.")
def main(batch: int, rounds: int, width: float, file: Path | None) -> None:
    """Print the table of structures, engines, kernels and ratios."""
    images = np.random.default_rng(0).random((batch, *SHAPE), dtype=np.float32)
    runs, kernels = {}, {}
    with one_thread():
        stages = {name: trace_classifier(one, SHAPE, "classifier") for name, one in structures(width).items()}
        for name, stage in stages.items():
            for engine, start in ENGINES.items():
                runs[name, engine], kernels[name, engine] = start(stage, images)
        found = ratios(runs, rounds)
        whole = ratios(defended(stages, images), rounds)
    rows = [("structure", "engine", "kernels", "time over dense"), ("---", "---", "---", "---:")]
    rows += [(name, engine, kernels[name, engine], f"{found[name, engine]:.2f}") for name, engine in runs]
    files = [("members", "file", "time over dense"), ("---", "---", "---:")]
    files += [(*key, f"{ratio:.2f}") for key, ratio in whole.items()]
    print(*aligned(rows), "", *aligned(files), machine(), sep="\n")
    if file is not None:
        table = [
            {"structure": name, "engine": engine, "kernels": kernels[name, engine], "ratio": found[name, engine]}
            for name, engine in runs
        ]
        defences = [{"members": name, "file": how, "ratio": ratio} for (name, how), ratio in whole.items()]
        said = {
            "batch": batch,
            "rounds": rounds,
            "width": width,
            "machine": machine(),
            "rows": table,
            "files": defences,
        }
        file.write_text(as_text(said))


if __name__ == "__main__":
    main()
