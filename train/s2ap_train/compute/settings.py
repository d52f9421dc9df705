"""Where a recipe says that training runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.compute.process import Precision

Accelerator = Literal["auto", "cpu", "cuda"]
AskedPrecision = Literal["auto", Precision]


@dataclass(frozen=True)
class ComputeSettings:
    """Where to train.

    Attributes:
        accelerator: "auto" is CUDA where there is a device, else the CPU.
        devices: GPUs, or processes on a CPU, that share a training.
        precision: "bf16" and "16" are mixed: weights stay 32 bit. "16" needs CUDA. "auto" is "bf16" where the device
            computes in it, else "32".
        channels_last: The faster layout of images on most hardware.
    """

    accelerator: Accelerator = "auto"
    devices: int = 1
    precision: AskedPrecision = "32"
    channels_last: bool = True

    def __post_init__(self) -> None:
        """Refuse what no machine has.

        Raises:
            RecipeError: If a value is unknown or `devices` below one.
        """
        for name, known in (("accelerator", get_args(Accelerator)), ("precision", ("auto", *get_args(Precision)))):
            if getattr(self, name) not in known:
                raise RecipeError(f"{name} {getattr(self, name)!r} is not known; choose from {', '.join(known)}")
        if self.devices < 1:
            raise RecipeError(f"devices is {self.devices}; training needs at least 1")

    def precision_on(self, device: torch.device) -> Precision:
        """The precision of passes on a device: what is asked for, or by "auto" what its hardware is fast in."""
        if self.precision != "auto":
            return self.precision
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
        has = torch.cpu.get_capabilities()
        return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "32"
