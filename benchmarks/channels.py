"""A ResNet18 without half of its channels against the whole one: operations, parameters, milliseconds, logits.

    python benchmarks/channels.py [--width 1.0] [--json build/channels.json]

Written down before measuring: half of the channels of every group leave about a quarter of the operations, because a
layer loses inputs and outputs; time falls by less, as what is left uses the processor worse, most of all for one image
and few channels. The logits are those of the gated network within 1e-5. Rounds of all variants alternate on one thread,
the median is reported. The weights are not trained: neither operations nor time depend on them. The command fails if
more than half of the operations are left, nothing is faster, or the logits differ.
"""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from report import medians
from torch import Tensor, nn

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_export.tracing.trace import trace_classifier
from s2ap_train.compute.threads import one_thread
from s2ap_train.models import ResNet18, fold_batch_norm
from s2ap_train.models.channel_groups import channel_groups, channel_sums, gate_channels, remove_channels
from s2ap_train.models.cost import flops, parameter_count

BATCHES = (1, 32)
TOLERANCE = 1e-5
Network = Callable[[Tensor], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds per image of the whole network and of the one without channels, and how many times faster it is."""

    engine: str
    batch: int
    whole_ms: float
    removed_ms: float
    speedup: float


@dataclass(frozen=True)
class Result:
    """What was measured; `logit_difference` is the largest between gated and removed channels."""

    width: float
    seed: int
    kept: float
    flops_whole: int
    flops_removed: int
    parameters_whole: int
    parameters_removed: int
    logit_difference: float
    timings: tuple[Timing, ...]
    machine: dict[str, object]


def network(width: float, seed: int) -> ResNet18:
    """An untrained network with the statistics of random images, and shifts that removal must not let through."""
    model = ResNet18(width=width, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.rand(64, *model.image_shape, generator=generator))
    return model.eval().requires_grad_(False)


def engines(model: ResNet18) -> dict[str, Network]:
    """The network in torch, with batch normalisation folded as attacks use it, and in ONNX Runtime as it is served."""
    folded = fold_batch_norm(model)
    file = trace_classifier(folded, model.image_shape, "classifier").SerializeToString()
    runtime = OnnxRuntimeEngine(file, device="cpu", threads=1)
    return {"torch": folded, "ONNX Runtime": lambda x: runtime.run({"image": x.numpy()}, ["log_probabilities"])}


def measure(width: float, kept_share: float, seed: int, rounds: int) -> Result:
    """Remove the channels of smallest L1 norm from every group, and compare."""
    whole = network(width, seed)
    shape = whole.image_shape
    groups = channel_groups(whole, shape)
    norms = channel_sums(groups, {name: weight.abs() for name, weight in whole.named_parameters()})
    kept = {}
    for group in groups:
        best = norms[group.name].topk(max(1, round(kept_share * group.size))).indices
        kept[group.name] = torch.zeros(group.size, dtype=torch.bool).index_fill(0, best, True)
    removed, gated = remove_channels(whole, groups, kept), gate_channels(whole, groups, kept)
    images = torch.rand(max(BATCHES), *shape, generator=torch.Generator().manual_seed(seed + 1))
    timings = []
    with torch.inference_mode():
        difference = float((removed(images) - gated(images)).abs().max())
        before, after = engines(whole), engines(removed)
        for batch in BATCHES:
            x = images[:batch]
            variants: dict[str, Callable[[], object]] = {}
            for engine in before:
                variants[f"{engine} whole"] = lambda run=before[engine], x=x: run(x)
                variants[f"{engine} removed"] = lambda run=after[engine], x=x: run(x)
            found = {name: 1e3 * seconds / batch for name, seconds in medians(variants, rounds).items()}
            for engine in before:
                slow, fast = found[f"{engine} whole"], found[f"{engine} removed"]
                timings.append(Timing(engine, batch, slow, fast, slow / fast))
    return Result(
        width=width,
        seed=seed,
        kept=kept_share,
        flops_whole=flops(whole, shape),
        flops_removed=flops(removed, shape),
        parameters_whole=parameter_count(whole),
        parameters_removed=parameter_count(removed),
        logit_difference=difference,
        timings=tuple(timings),
        machine={
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": 1,
            "torch": torch.__version__,
        },
    )


@click.command()
@click.option("--width", default=1.0, show_default=True, help="Factor of the channels.")
@click.option("--kept", default=0.5, show_default=True, help="Share of each group's channels that is kept.")
@click.option("--rounds", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures here too.")
def main(width: float, kept: float, rounds: int, seed: int, file: Path | None) -> None:
    """Print operations, parameters, milliseconds per image and the difference of the logits."""
    with one_thread():
        result = measure(width, kept, seed, rounds)
    print(f"ResNet18, width {width:g}, {kept:.0%} of each group's channels kept; one thread, {rounds} rounds")
    for name, before, after in (
        ("operations", result.flops_whole, result.flops_removed),
        ("parameters", result.parameters_whole, result.parameters_removed),
    ):
        print(f"  {name:22s} {before / 1e6:10.2f} M -> {after / 1e6:8.2f} M   x {after / before:.3f}")
    for timing in result.timings:
        name = f"{timing.engine}, batch {timing.batch}"
        print(
            f"  {name:22s} {timing.whole_ms:9.3f} ms -> {timing.removed_ms:7.3f} ms   {timing.speedup:.2f} times faster"
        )
    print(f"  gated and removed logits differ by at most {result.logit_difference:.1e}")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(result), indent=2) + "\n")
    problems = []
    if result.flops_removed > 0.5 * result.flops_whole and kept <= 0.5:
        problems.append("more than half of the operations are left")
    if any(timing.speedup <= 1 for timing in result.timings):
        problems.append("the smaller network is not faster everywhere")
    if result.logit_difference > TOLERANCE:
        problems.append(f"the logits differ by more than {TOLERANCE:g}")
    if problems:
        raise click.ClickException("; ".join(problems))


if __name__ == "__main__":
    main()
