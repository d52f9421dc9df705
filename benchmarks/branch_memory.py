"""How much memory a file with 24 members needs: weights in the branches of waves, and in the main graph.

    python benchmarks/branch_memory.py

Written down before measuring: ONNX Runtime keeps the weights of a branch in the node's attribute, in the branch's graph
and as tensors, and once more where it rearranges them (microsoft/onnxruntime#20709): three to four times their size.
In the main graph it keeps them once, and once more where it rearranges them: one to two times. Every file is loaded and
run on four images in a process of its own, one thread; figures are its resident memory less that before the load.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from report import aligned, machine
from torch import nn

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.sequential import SequentialTest
from s2ap_export.graph.compose import compose
from s2ap_export.tracing.trace import trace_classifier, trace_purifier
from s2ap_train.purifier import Purification, UNet, hadamard_bank

SHAPE, CLASSES, WAVES = (3, 16, 16), 10, (4, 4, 8, 8)
MEMBERS = sum(WAVES)


def network(seed: int) -> nn.Module:
    """A member of 2.4 million weights."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 512, 3, stride=2), nn.ReLU(), nn.Conv2d(512, 256, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, CLASSES)).eval()


def write(path: Path, most_in_branches: int) -> int:
    """Write the file; returns the bytes of its weights behind the first wave."""
    never = np.full(MEMBERS, np.inf)
    test = SequentialTest(
        evidence="margin",
        edges=np.full((MEMBERS, 1), 1.0, np.float32),
        increments=np.tile([-1.0, 1.0], (MEMBERS, 1)),
        lower=-never,
        upper=never,
        final_threshold=np.inf,
        waves=WAVES,
        vote_weights=np.ones(MEMBERS),
    )
    classifier, *members = (trace_classifier(network(seed), SHAPE, f"network_{seed}") for seed in range(MEMBERS + 1))
    off = Purification(steps=0, bank_size=2)
    purifier = trace_purifier(UNet(SHAPE[0], 8, (1,)), hadamard_bank(2, SHAPE, 0), off, SHAPE)
    model = compose(
        purifier, classifier, members, test, sees=["raw"] * MEMBERS, purify="off", most_in_branches=most_in_branches
    )
    onnx.save_model(model, path)
    return sum(member.ByteSize() for member in members[WAVES[0] :])


def resident() -> float:
    """MB of this process in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


@click.command()
@click.option("--load", type=click.Path(path_type=Path), hidden=True)
def main(load: Path | None) -> None:
    """Print megabytes of a process after it has loaded the file, and after it has run it."""
    if load:
        before = resident()
        engine = OnnxRuntimeEngine(load, device="cpu", threads=1)
        loaded = resident()
        engine.run({"image": np.random.default_rng(0).random((4, *SHAPE), dtype=np.float32)}, ["members_used"])
        print(f"{loaded - before:.0f} {resident() - before:.0f}")
        return
    rows: list[tuple[str, ...]] = [
        ("weights of later members", "their MB", "MB after loading", "MB after running"),
        ("---", "---:", "---:", "---:"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, most in (("in branches", 2**40), ("in the main graph", 0)):
            path = Path(folder) / "model.onnx"
            size = write(path, most)
            said = subprocess.run(  # noqa: S603 - this file
                [sys.executable, __file__, "--load", str(path)], capture_output=True, text=True, check=True
            )
            rows.append((name, f"{size / 2**20:.0f}", *said.stdout.split()))
    print(*aligned(rows), machine(), sep="\n")


if __name__ == "__main__":
    main()
