"""Work in another process that a signal can end: a fork of this one, which has imported everything."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import torch


def forked(work: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start it; `exitcode` is minus the signal that ended it.

    Args:
        work: Of a module that can be imported: where there is CUDA, which no fork can share, it is imported anew.
        arguments: Its own.
    """
    method = "forkserver" if torch.cuda.is_available() else "fork"
    process = multiprocessing.get_context(method).Process(target=_begin, args=(work, *arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # no thread of this process holds what the fork needs
        process.start()
    return process


def ended(process: BaseProcess, timeout_s: float = 120) -> int | None:
    """Its exit code, once it has ended; None: it has not, within the time."""
    process.join(timeout_s)
    return process.exitcode


def _begin(work: Callable[..., object], *arguments: object) -> None:
    torch.set_num_threads(1)
    work(*arguments)
