"""One part of benchmarks/gpu.sh: what a machine with a GPU says of files, engines and training, as JSON.

    python benchmarks/gpu.py parity-torch --device cuda --folder build/gpu

A part whose library or provider is missing writes which, under "skipped"; one that fails writes PART.error.txt. The
exit code of both is 1, and the next call tries them again.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_measured import SIZES, Sizes, flops, product_flops_per_s, shaped, timed

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "contract" / "golden"
ONNXRUNTIME = ("whole", "staged", "at_once")
TORCH = ("float32", "bfloat16", "float16")


def environment(device: str, sizes: Sizes) -> dict[str, Any]:  # noqa: ARG001
    """Versions, and what the machine is."""
    import torch

    from s2ap_defend.bench.machine import describe_machine
    from s2ap_defend.model_file import open_model_file
    from s2ap_defend.verification.places import find_places
    from s2ap_defend.verification.verify import file_stages

    stages = file_stages(open_model_file(GOLDEN / "version-4.onnx"))
    found = {place.device: {"runs": place.runs, "detail": place.detail} for place in find_places(stages, ())}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"machine": describe_machine(), "torch": torch.__version__, "gpu": gpu, "places": found}


def parity_onnxruntime(device: str, sizes: Sizes) -> dict[str, Any]:
    """Executors on the device against the whole file on the CPU."""
    from s2ap_defend import DefendedClassifier

    if lacking := _lacking(device):
        return lacking
    return _parity(sizes, {name: _loads(DefendedClassifier, device, name) for name in ONNXRUNTIME})


def parity_torch(device: str, sizes: Sizes) -> dict[str, Any]:
    """PyTorch on the device against the whole file on the CPU."""
    from s2ap_export.torch_engine import load_torch

    types = TORCH if device == "cuda" else TORCH[:2]
    ways = {name: lambda path, name=name: load_torch(path, device=device, dtype=name) for name in types}
    return _parity(sizes, ways)


def bench_onnxruntime(device: str, sizes: Sizes) -> dict[str, Any]:
    """Times of the executors."""
    if lacking := _lacking(device):
        return lacking
    from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
    from s2ap_defend.executors.at_once import AtOnceExecutor
    from s2ap_defend.executors.staged import StagedExecutor
    from s2ap_defend.executors.starters import BoundStages
    from s2ap_defend.types import Verdicts

    found = {}
    for name, asks_all, file in shaped(sizes):
        whole = OnnxRuntimeEngine(file.model.SerializeToString(), device=device)
        ways: dict[str, Callable[[Any], object]] = {
            "whole": lambda images, whole=whole: whole.run({"image": images}, Verdicts.FIELDS),
            "staged": StagedExecutor(file.defence, on=BoundStages(device)).run,
            "at_once": AtOnceExecutor(file.defence, on=BoundStages(device)).run,
        }
        found[name] = timed(ways, sizes, flops(file, asks_all))
    return found


def bench_torch(device: str, sizes: Sizes) -> dict[str, Any]:
    """Times of PyTorch, and the share of what products of matrices reach there."""
    import torch

    from s2ap_defend.executors.staged import StagedExecutor
    from s2ap_export.torch_engine.load import DTYPES, TorchStages

    found: dict[str, Any] = {}
    types = TORCH if device == "cuda" else TORCH[:1]
    ceilings = {name: product_flops_per_s(torch.device(device), DTYPES[name]) for name in types}
    found["ceilings_flops_per_s"] = ceilings
    for name, asks_all, file in shaped(sizes):
        ways = {}
        for dtype in types:
            for members in ("apart", "batched"):
                stages = TorchStages(torch.device(device), DTYPES[dtype], members)
                ways[f"{dtype}, {members}"] = StagedExecutor(file.defence, on=stages).run
        found[name] = timed(ways, sizes, flops(file, asks_all))
        for way, rows in found[name].items():
            for row in rows:
                row["of_ceiling"] = row["flops_per_s"] / ceilings[way.partition(",")[0]]
    return found


def training(device: str, sizes: Sizes) -> dict[str, Any]:
    """Adversarial training of a ResNet18 on random images, in every precision that the device has."""
    import torch

    from s2ap_train.compute import Compute
    from s2ap_train.models.resnet import ResNet18
    from s2ap_train.training import Run, TrainingConfig, train_classifier

    width, shape = sizes.resnet
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((sizes.trained, *shape), generator=generator)
    labels = torch.randint(0, 10, (sizes.trained,), generator=generator)
    few = images[:8], labels[:8]
    config = TrainingConfig(epochs=1, batch_size=min(256, sizes.trained), attack_steps=2, validation_steps=1)
    found = {}
    for precision in ("32", "bf16") if device == "cuda" else ("32",):
        compute = Compute(device, precision=precision, channels_last=True)
        seconds = []
        for _ in range(2):  # the first one warms up
            model = compute.place(ResNet18(shape[0], 10, width=width, seed=0))
            began = time.perf_counter()
            result = train_classifier(model, images.numpy(), labels.numpy(), few, config, run=Run(0, compute))
            seconds.append(time.perf_counter() - began)
        found[precision] = {"images_per_s": sizes.trained / seconds[-1], "history": list(result.history)}
    return found


PARTS: dict[str, Callable[[str, Sizes], dict[str, Any]]] = {
    "environment": environment,
    "parity-onnxruntime": parity_onnxruntime,
    "parity-torch": parity_torch,
    "bench-onnxruntime": bench_onnxruntime,
    "bench-torch": bench_torch,
    "training": training,
}


def _lacking(device: str) -> dict[str, str]:
    """Why ONNX Runtime has no such device here; empty where it was built for it."""
    from s2ap_defend.engines.onnxruntime import available_device
    from s2ap_defend.errors import EngineError

    try:
        available_device(device)  # type: ignore[arg-type]
    except EngineError as error:
        return {"skipped": str(error)}
    return {}


def _loads(classifier: Any, device: str, executor: str) -> Callable[[Path], Any]:  # noqa: ANN401
    return lambda path: classifier.load(path, device=device, executor=executor)


def _parity(sizes: Sizes, ways: dict[str, Callable[[Path], Any]]) -> dict[str, Any]:
    """Flips and largest differences of every way to run every file."""
    import numpy as np

    from s2ap_defend import DefendedClassifier

    found: dict[str, Any] = {}
    for path in (ROOT / "models" / "fashion.onnx", *sorted(GOLDEN.glob("*.onnx"))):
        here = DefendedClassifier.load(path, device="cpu", executor="whole")
        rng = np.random.default_rng(0)
        brightness = rng.choice([0.3, 1.0], (sizes.images, 1, 1, 1)).astype(np.float32)
        images = rng.random((sizes.images, *here.input_shape), dtype=np.float32) * brightness
        expected = here(images)
        for name, load in ways.items():
            there = load(path)
            said = there(images)
            found.setdefault(path.name, {})[name] = {
                "provider": there.provider,
                "images": sizes.images,
                "label": int((said.label != expected.label).sum()),
                "adversarial": int((said.adversarial != expected.adversarial).sum()),
                "members_used": int((said.members_used != expected.members_used).sum()),
                "probabilities": float(np.abs(said.probabilities - expected.probabilities).max()),
                "purified": float(np.abs(said.purified - expected.purified).max()),
            }
    return found


def main() -> None:
    """Measure one part and write PART.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--sizes", choices=list(SIZES), default="full")
    parser.add_argument("--folder", type=Path, required=True, help="where PART.json is written")
    asked = parser.parse_args()
    began, error_file = time.perf_counter(), asked.folder / f"{asked.part}.error.txt"
    try:
        found = PARTS[asked.part](asked.device, SIZES[asked.sizes])
    except ModuleNotFoundError as error:
        found = {"skipped": f"{error.name} is not installed for {sys.executable}"}
    except Exception as error:
        from s2ap_defend.errors import first_line

        error_file.write_text(traceback.format_exc())
        sys.exit(f"{asked.part}: failed, {type(error).__name__}: {first_line(error)}; where is in {error_file}")
    error_file.unlink(missing_ok=True)
    seconds = time.perf_counter() - began
    document = {"part": asked.part, "device": asked.device, "sizes": asked.sizes, "seconds": seconds, **found}
    path = asked.folder / f"{asked.part}.json"
    path.with_suffix(".tmp").write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".tmp").replace(path)
    if "skipped" in found:
        sys.exit(f"{asked.part}: skipped, {found['skipped']}")
    print(f"{asked.part}: done, {seconds:.0f} s")


if __name__ == "__main__":
    main()
