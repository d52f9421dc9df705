"""Where a file runs on this machine, and why not elsewhere."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from onnx import ModelProto

from s2ap_defend.engines import Device
from s2ap_defend.engines.cores import usable_cores
from s2ap_defend.engines.onnxruntime import INSTALL, OnnxRuntimeEngine, version
from s2ap_defend.errors import DefendError
from s2ap_defend.verification import Place

__all__ = ["DEVICES", "find_places"]

DEVICES: tuple[Device, ...] = ("cpu", "cuda", "tensorrt")
_NODES = ("dev/nvidiactl", "dev/dxg")
"""What the driver puts there; the second one under Windows."""
_PATIENCE_S = 120
_MISSING = re.compile(r"with error: ([^\n]+)")
"""What ONNX Runtime says of a library that its provider needs and the machine does not have."""


def find_places(
    stages: Mapping[str, ModelProto], refused: Sequence[str], *, root: Path = Path("/")
) -> tuple[Place, ...]:
    """Try every device with the smallest stage.

    Args:
        stages: Of the file, by scope.
        refused: What the lint says that TensorRT does not take.
        root: Where `dev` is.
    """
    smallest = min(stages.values(), key=ModelProto.ByteSize).SerializeToString()
    return tuple(_place(device, smallest, refused, root) for device in DEVICES)


def _place(device: Device, stage: bytes, refused: Sequence[str], root: Path) -> Place:
    if device == "tensorrt" and refused:
        return Place(device, False, f"its stages are not for TensorRT: {refused[0]}")
    if device == "cpu":
        try:
            provider = OnnxRuntimeEngine(stage, device=device).provider
        except DefendError as error:
            return Place(device, False, str(error))
        return Place(device, True, f"ONNX Runtime {version()}, {provider}, {usable_cores()} cores")
    if sys.platform == "linux" and not any((root / node).exists() for node in _NODES):
        return Place(
            device, False, f"this machine has no NVIDIA device (no {' or '.join(f'/{node}' for node in _NODES)})"
        )
    return _tried_apart(device, stage)


def _tried_apart(device: Device, stage: bytes) -> Place:
    """A device in a process of its own, which may print and crash as drivers do."""
    command = [sys.executable, "-m", __name__, device]
    try:
        done = subprocess.run(command, input=stage, capture_output=True, check=False, timeout=_PATIENCE_S)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return Place(device, False, f"could not be tried: {error}")
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode == 0:
        return Place(device, True, said)
    missing = _MISSING.search(done.stderr.decode(errors="replace"))
    if missing:
        return Place(device, False, f"{missing[1].strip()}; {INSTALL[device]}")
    return Place(device, False, said or f"the engine ended with code {done.returncode}")


def _try(device: Device) -> int:
    """In the process of its own: the stage comes on standard input, what is found goes to standard output."""
    try:
        engine = OnnxRuntimeEngine(sys.stdin.buffer.read(), device=device)
    except DefendError as error:
        print(error)  # noqa: T201
        return 1
    print(f"ONNX Runtime {version()}, {engine.provider}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(_try(cast("Device", sys.argv[1])))
