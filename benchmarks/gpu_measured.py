"""What benchmarks/gpu.py measures: how much, files of one shape, and the time of every way to run them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["SIZES", "Sizes", "flops", "product_flops_per_s", "shaped", "timed"]


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        batches: Sizes of batches.
        images: That parity is looked at.
        seconds: Of each measurement of time.
        resnet: Width of the network of the shape cifar10-resnet18, and its images (C, H, W).
        trained: Images of the short training.
    """

    batches: tuple[int, ...]
    images: int
    seconds: float
    resnet: tuple[float, tuple[int, int, int]]
    trained: int


SIZES = {
    "full": Sizes((1, 2, 4, 8, 16, 32, 64, 128, 256), 1000, 0.5, (1.0, (3, 32, 32)), 5120),
    "tiny": Sizes((1, 2), 4, 0.01, (0.0625, (3, 8, 8)), 16),
}


def shaped(sizes: Sizes) -> Iterator[tuple[str, bool, Any]]:
    """Untrained files of the shape cifar10-resnet18 with six members, decided after their first wave or after all."""
    from latency_files import built

    from s2ap_export.tracing.trace import trace_classifier
    from s2ap_train.models import fold_batch_norm
    from s2ap_train.models.resnet import ResNet18

    width, shape = sizes.resnet
    networks = [fold_batch_norm(ResNet18(shape[0], 10, width=width, seed=seed).eval()) for seed in range(7)]
    scopes = ["classifier", *(f"member_{i:03d}" for i in range(6))]
    traced = [trace_classifier(network, shape, scope) for network, scope in zip(networks, scopes, strict=True)]
    for name, asks_all in (("resnet18, four members asked", False), ("resnet18, six members asked", True)):
        yield name, asks_all, built(shape, 6, asks_all=asks_all, networks=traced)


def flops(file: Any, asks_all: bool) -> int:  # noqa: ANN401
    """Of the networks that an image asks."""
    from s2ap_defend.bench.work import count_work

    work = count_work(file.classifier)
    return 0 if work is None else work.flops * (1 + (file.test.members if asks_all else file.test.waves[0]))


def timed(ways: dict[str, Callable[[Any], object]], sizes: Sizes, flops: int) -> dict[str, list[dict[str, float]]]:
    """Milliseconds of a call by way and size of batch; ways take turns, a call each."""
    import numpy as np

    rng, (_, shape) = np.random.default_rng(0), sizes.resnet
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for batch in sizes.batches:
        images = rng.random((batch, *shape), dtype=np.float32)
        took: dict[str, list[float]] = {name: [] for name in ways}
        for run in ways.values():
            for _ in range(3):
                run(images)
        ends = time.perf_counter() + sizes.seconds * len(ways)
        while time.perf_counter() < ends or len(took[next(iter(ways))]) < 10:
            for name, run in ways.items():
                began = time.perf_counter()
                run(images)
                took[name].append(time.perf_counter() - began)
        for name, seconds in took.items():
            middle, late = (float(np.quantile(seconds, share)) for share in (0.5, 0.99))
            found[name].append(
                {
                    "batch": batch,
                    "runs": len(seconds),
                    "p50_ms": 1e3 * middle,
                    "p99_ms": 1e3 * late,
                    "images_per_s": batch / middle,
                    "flops_per_s": flops * batch / middle,
                }
            )
    return found


def product_flops_per_s(device: Any, dtype: Any) -> float:  # noqa: ANN401
    """What a product of large matrices reaches."""
    import torch

    side = 8192 if device.type == "cuda" else 256
    one = torch.rand((side, side), device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        one @ one
        if device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * side**3 / fastest
