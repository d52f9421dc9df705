"""Milliseconds per image of a defended file, as ratios in one run.

    python benchmarks/latency.py build/model.onnx

Written down before measuring: one thread is at least as fast as two for small images; the purifier costs more than
classifier and members together; clean images, which stop after a few members, cost less than images that ask all; ONNX
Runtime is faster than the same stages in torch eager. Rounds of all variants alternate, the median is reported.
"""

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from report import medians

from s2ap_defend import DefendedClassifier
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage
from s2ap_train.compute.threads import one_thread
from s2ap_train.recipe import load_recipe
from s2ap_train.twin import Twin

BATCHES = (1, 8, 64)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--rounds", default=30, show_default=True)
def main(model: Path, rounds: int) -> None:
    """Print milliseconds per image and ratios to the whole file on one thread."""
    file = open_model_file(model)
    images = load_recipe("digits").load_data().test.images
    one, two = (DefendedClassifier.load(model, device="cpu", threads=threads, executor="whole") for threads in (1, 2))
    stages = {
        scope: OnnxRuntimeEngine(cut_stage(file.proto, scope).SerializeToString(), device="cpu", threads=1)
        for scope in (PURIFIER, CLASSIFIER)
    }
    outputs = {PURIFIER: ["purified"], CLASSIFIER: ["log_probabilities"]}
    twin = Twin.from_file(file)
    for batch in BATCHES:
        x = images[:batch]
        noise = np.random.default_rng(0).random(x.shape, dtype=np.float32)

        def in_torch(x: np.ndarray = x) -> None:
            with torch.no_grad():
                purified = twin.purify(torch.from_numpy(x))
                twin.classify(purified)
                twin.members(purified)

        variants: dict[str, Callable[[], object]] = {
            "whole, 1 thread": lambda x=x: one(x),
            "whole, 2 threads": lambda x=x: two(x),
            "whole, noise images": lambda x=noise: one(x),
            **{
                f"{scope} alone": lambda x=x, scope=scope: stages[scope].run({"image": x}, outputs[scope])
                for scope in stages
            },
            "all stages, all members, torch": in_torch,
        }
        with one_thread():
            found = medians(variants, rounds)
        print(
            f"batch {batch}, {rounds} rounds; members asked: clean {one(x).members_used.mean():.1f}, "
            f"noise {one(noise).members_used.mean():.1f}"
        )
        for name, value in found.items():
            print(f"  {name:32s} {1e3 * value / batch:8.3f} ms an image   x {value / found['whole, 1 thread']:.2f}")


if __name__ == "__main__":
    main()
