"""Where a recipe says that training runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from s2ap_defend.errors import RecipeError
from s2ap_train.compute.process import Precision

Accelerator = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ComputeSettings:
    """Where to train.

    Attributes:
        accelerator: "auto" is CUDA where there is a device, else the CPU.
        devices: GPUs, or processes on a CPU, that share a training.
        precision: "bf16" and "16" are mixed: weights stay 32 bit. "16" needs CUDA.
        channels_last: The faster layout of images on most hardware.
    """

    accelerator: Accelerator = "auto"
    devices: int = 1
    precision: Precision = "32"
    channels_last: bool = True

    def __post_init__(self) -> None:
        """Refuse what no machine has.

        Raises:
            RecipeError: If a value is unknown or `devices` below one.
        """
        for name, known in (("accelerator", get_args(Accelerator)), ("precision", get_args(Precision))):
            if getattr(self, name) not in known:
                raise RecipeError(f"{name} {getattr(self, name)!r} is not known; choose from {', '.join(known)}")
        if self.devices < 1:
            raise RecipeError(f"devices is {self.devices}; training needs at least 1")
