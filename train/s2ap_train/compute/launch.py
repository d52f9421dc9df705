"""Starting a training run on one device or several."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.allocator import reuse_freed_memory
from s2ap_train.compute.process import Compute
from s2ap_train.compute.settings import ComputeSettings

R = TypeVar("R")


def launch(settings: ComputeSettings, function: Callable[..., R], *args: object) -> R:
    """Run `function(compute, *args)` once for each device and return what the first process returns.

    One device: in this process. More: in new processes that `lightning_fabric` starts, joined by NCCL (CUDA) or gloo
    (CPU). Function, arguments and result travel as pickles in a folder of temporary files, so the function must be
    importable by name, arguments are copies, and a result comes back on the CPU.

    Raises:
        RecipeError: If this machine lacks what the settings ask for, or a process raised one or was killed.
        RuntimeError: If a process raised anything else; the message holds its traceback.
    """
    accelerator = check_available(settings)
    if settings.devices > 1:
        from s2ap_train.compute.processes import launch_processes  # it imports lightning_fabric

        return launch_processes(settings, accelerator, function, args)
    reuse_freed_memory()
    return function(compute_here(settings), *args)


def compute_here(settings: ComputeSettings) -> Compute:
    """The first device that the settings ask for, for this process alone.

    Raises:
        RecipeError: If this machine lacks what they ask for.
    """
    device = torch.device("cuda", 0) if check_available(settings) == "cuda" else torch.device("cpu")
    return Compute(device, precision=settings.precision_on(device), channels_last=settings.channels_last)


def check_available(settings: ComputeSettings) -> Literal["cpu", "cuda"]:
    """The accelerator that these settings come to on this machine.

    Raises:
        RecipeError: If it is not there, has too few devices, or cannot do the precision.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.accelerator == "cuda" and not found:
        raise RecipeError('accelerator is "cuda", but this machine has no CUDA device; use "cpu" or "auto"')
    use_cuda = settings.accelerator != "cpu" and found > 0
    if use_cuda and settings.devices > found:
        raise RecipeError(f"devices is {settings.devices}, but this machine has {found} CUDA device(s); ask for fewer")
    cores = os.cpu_count() or 1
    if not use_cuda and settings.devices > cores:
        raise RecipeError(
            f"devices is {settings.devices}, but this machine has no CUDA device to use and {cores} CPU core(s); "
            "ask for fewer"
        )
    if settings.precision == "16" and not use_cuda:
        raise RecipeError('precision "16" needs a CUDA device; on the CPU use "32" or "bf16"')
    return "cuda" if use_cuda else "cpu"
