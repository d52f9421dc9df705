"""Where a network is, and its modes for the length of one block of code; every one is undone on the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm


def device_of(model: object) -> torch.device:
    """Where a module's parameters are; the CPU for a plain function."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def evaluation_mode(model: object) -> Iterator[None]:
    """Within this context a module and all its parts are in evaluation mode; a plain function is left alone."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def attention_in_steps() -> Iterator[None]:
    """Within this context attention runs as products of matrices and a softmax, not as one operator for all of it."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def batch_norm_statistics_frozen(model: nn.Module) -> Iterator[None]:
    """Within this context a pass in training mode normalises with the batch but leaves the running statistics alone.

    For the passes that only look for a perturbation of weights or scores (AWP, S2AP): their inputs must not be averaged
    twice.
    """
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
