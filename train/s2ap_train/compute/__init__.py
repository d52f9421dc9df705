"""Where training runs: one process or one for each device, with which precision and memory layout."""

from s2ap_train.compute.launch import check_available, compute_here, launch
from s2ap_train.compute.process import LOCAL, Compute, Precision
from s2ap_train.compute.settings import Accelerator, ComputeSettings

__all__ = [
    "LOCAL",
    "Accelerator",
    "Compute",
    "ComputeSettings",
    "Precision",
    "check_available",
    "compute_here",
    "launch",
]
