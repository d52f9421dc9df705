"""What the export does for the speed of a purifier: nodes, load time, milliseconds an image, each rewrite switched off.

    python benchmarks/purifier_graph.py --json benchmarks/results/purifier-graph.json

Written down before optimising, from a profile of the digits purifier at batch 64, where ONNX Runtime was 1.5 times as
fast as eager torch, 17 times at batch 1. Convolutions took 61 % of the time, near the processor's limit except those
to one channel (6 %: 15 of 16 channels of a block empty); factors and sums per channel 6 %; products and means of the
norms 5 %; changes of layout 5 %; the rest passes over memory, one for each node.

    few_channels      transposed convolutions to images instead: 5 % less at batch 64, digits and 32x32
    merged_constants  one pass instead of two for scale and shift: 4 % less on digits, nothing on 32x32
    fused_norms       one node instead of eight, without a gradient only: 10 % less for J-free, nothing for full
    row products      as a product of matrices instead of a product and a mean: 3 % less. Found to take 7 times as long
                      on ONNX Runtime (one column at a time), so it is not there
    folded factors    a norm's scale, in its gradient, inside the weights of the convolution before: 2.5 % less on
                      digits. Found 1 %, for a copy of the weights for each sigma, so it is not there
    together          1.7 times as fast as eager at batch 64; at batch 1 nodes count, so 10 % less for full, 25 % J-free

The embedding of sigma does not depend on the image and is always a constant; 'without folded sigma' computes it for
each image of the bank from a value of the graph instead. A norm with two outputs (LayerNormalization and its
deviations) would save two passes, but TensorRT reads only the first. Rounds of all variants alternate, medians are
reported, ratios are of one run. One thread, in seconds of the processor, which other processes do not lengthen much.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from onnx import ModelProto
from report import aligned, as_text, machine, medians
from torch import nn

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_export.graph.rewrites import Rewrites
from s2ap_export.hardening.precision import to_half
from s2ap_export.tracing.trace import trace_purifier
from s2ap_train.compute.threads import one_thread
from s2ap_train.purifier import Purification, UNet, hadamard_bank, purify

FAST = Purification(sigma=0.1, radius=0.15, steps=1, rho=0.05, bank_size=2)
BATCHES = {1: 8, 64: 1}  # and how many runs follow each other, so that the variant before has left the caches
OUTPUTS = ["purified", "reconstruction_error"]
EARLIER = ("mirrored_convolutions", "shared_nodes", "merged_reshapes")  # those that the first export had


class UnfoldedSigma(nn.Module):
    """The score model, given sigma as a value of the graph: its embedding is computed for each image of the bank.

    Args:
        net: The score model.
    """

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, noisy: torch.Tensor, sigma: float) -> torch.Tensor:
        """The network's answer; sigma is added to a zero that is computed from the image, so nothing can be folded."""
        zero = 0.0 * noisy.detach().flatten(1).sum(dim=1)
        noise: torch.Tensor = self.net(noisy, zero + sigma)
        return noise


@dataclass(frozen=True)
class Case:
    """A purifier that is measured: its name, the images, the network and how it descends."""

    name: str
    shape: tuple[int, int, int]
    net: UNet | UnfoldedSigma
    config: Purification
    rounds: dict[int, int]  # by batch

    def stage(self, rewrites: Rewrites | None = None) -> ModelProto:
        """The exported stage."""
        return trace_purifier(self.net, self._bank, self.config, self.shape, rewrites=rewrites)

    def eager(self, x: np.ndarray) -> None:
        """The same in torch."""
        with torch.no_grad():
            purify(self.net, torch.from_numpy(x), self._bank, self.config)

    @property
    def _bank(self) -> torch.Tensor:
        return hadamard_bank(self.config.bank_size, self.shape, self.config.bank_seed)


def cases() -> list[Case]:
    """Digits, fast and as the recipe has it, and 32x32 colour images; weights are random, they decide nothing here."""
    digits, colour = UNet(1, 16, (1, 2), seed=0), UNet(3, 32, (1, 2, 2), seed=0)
    generator = torch.Generator().manual_seed(0)
    for net in (digits, colour):
        for parameter in net.requires_grad_(False).eval().parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    few, many = {1: 20, 64: 15}, {1: 4, 64: 3}
    j_free = replace(FAST, mode="j_free")
    return [
        Case("digits, K 1, M 2, full", (1, 8, 8), digits, FAST, few),
        Case("digits, K 1, M 2, J-free", (1, 8, 8), digits, j_free, few),
        Case("digits, K 3, M 4, full", (1, 8, 8), digits, replace(FAST, steps=3, bank_size=4), {1: 8, 64: 5}),
        Case("32x32, K 1, M 2, full", (3, 32, 32), colour, FAST, many),
        Case("32x32, K 1, M 2, J-free", (3, 32, 32), colour, j_free, many),
    ]


def variants(case: Case) -> dict[str, ModelProto]:
    """The stage with every rewrite, without each, with the oldest alone, with none, and in half precision."""
    names = [field.name for field in fields(Rewrites)]
    if case.config.mode == "full":
        names.remove("fused_norms")  # norms with a gradient are not fused
    without = {f"without {name}": replace(Rewrites(), **{name: False}) for name in names}
    earlier = Rewrites(**{field.name: field.name in EARLIER for field in fields(Rewrites)})
    none = Rewrites(**dict.fromkeys((field.name for field in fields(Rewrites)), False))
    chosen = {"all rewrites": Rewrites(), **without, "the first three alone": earlier, "none": none}
    stages = {name: case.stage(rewrites) for name, rewrites in chosen.items()}
    unfolded = replace(case, net=UnfoldedSigma(case.net)).stage()
    return stages | {"without folded sigma": unfolded, "float16 convolutions": to_half(stages["all rewrites"])}


def measure(case: Case, loads: int = 3) -> dict[str, Any]:
    """Nodes, milliseconds to load, and milliseconds an image for every variant and batch, eager torch among them."""
    stages = variants(case)
    clock = time.process_time
    load: dict[str, list[float]] = {name: [] for name in stages}
    engines: dict[str, OnnxRuntimeEngine] = {}
    for _ in range(loads):
        for name, stage in stages.items():
            file = stage.SerializeToString()
            began = clock()
            engines[name] = OnnxRuntimeEngine(file, device="cpu", threads=1)
            load[name].append(1e3 * (clock() - began))
    rows: dict[str, Any] = {
        name: {"nodes": len(stage.graph.node), "load_ms": statistics.median(load[name])}
        for name, stage in stages.items()
    }
    rows["eager torch"] = {"nodes": None, "load_ms": None}
    for batch, times in BATCHES.items():
        x = np.random.default_rng(0).random((batch, *case.shape), dtype=np.float32)
        runs: dict[str, Callable[[], object]] = {
            name: partial(engine.run, {"image": x}, OUTPUTS) for name, engine in engines.items()
        }
        runs["eager torch"] = partial(case.eager, x)
        found = medians(
            {name: partial(repeat, run, times) for name, run in runs.items()}, case.rounds[batch], clock=clock
        )
        for name, seconds in found.items():
            rows[name][f"ms_batch_{batch}"] = 1e3 * seconds / (batch * times)
    return rows


def repeat(run: Callable[[], object], times: int) -> None:
    """Run so many times."""
    for _ in range(times):
        run()


def table(rows: dict[str, Any]) -> list[str]:
    """A line for every variant; behind the milliseconds the ratio to all rewrites."""
    best = rows["all rewrites"]
    header = ("export", "nodes", "load, ms", *(f"ms an image, batch {batch}" for batch in BATCHES))
    lines: list[tuple[str, ...]] = [header, tuple("---" if i == 0 else "---:" for i in range(len(header)))]
    for name, row in rows.items():
        times = (row[f"ms_batch_{batch}"] for batch in BATCHES)
        ratios = (row[f"ms_batch_{batch}"] / best[f"ms_batch_{batch}"] for batch in BATCHES)
        cells = (f"{ms:.3f} (x {ratio:.2f})" for ms, ratio in zip(times, ratios, strict=True))
        nodes, load = ("", "") if row["nodes"] is None else (str(row["nodes"]), f"{row['load_ms']:.0f}")
        lines.append((name, nodes, load, *cells))
    return aligned(lines)


@click.command()
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures to this file as well.")
@click.option("--only", default="", help="Measure the purifiers whose names begin so.")
def main(output: Path | None, only: str) -> None:
    """Print a table for every purifier."""
    document: dict[str, Any] = {"machine": machine(), "rounds": {}, "purifiers": {}}
    with one_thread():
        for case in cases():
            if not case.name.startswith(only):
                continue
            document["purifiers"][case.name] = measure(case)
            document["rounds"][case.name] = {str(batch): rounds for batch, rounds in case.rounds.items()}
            print(f"\n{case.name}\n", *table(document["purifiers"][case.name]), sep="\n", flush=True)
    print(f"\n{json.dumps(document['machine'])}")
    if output:
        output.write_text(as_text(document))


if __name__ == "__main__":
    main()
