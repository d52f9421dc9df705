"""Work in another process that a signal can end: a fork of this one, which has imported everything."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import torch


def forked(work: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start it; `exitcode` is minus the signal that ended it.

    Args:
        work: Of a module that can be imported: where a fork cannot share what torch has started, it is imported anew.
        arguments: Its own.
    """
    if not torch.cuda.is_available() and ended(_started("fork", _differentiate)) == 0:
        return _started("fork", _begin, work, *arguments)
    return _started("forkserver", _begin, work, *arguments)


def ended(process: BaseProcess, timeout_s: float = 120) -> int | None:
    """Its exit code, once it has ended; None: it has not, within the time."""
    process.join(timeout_s)
    return process.exitcode


def _started(method: str, target: Callable[..., object], *arguments: object) -> BaseProcess:
    process = multiprocessing.get_context(method).Process(target=target, args=arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # no thread of this process holds what the fork needs
        process.start()
    return process


def _differentiate() -> None:
    """End well where a backward pass works: not behind one of the parent with a device that torch only pretends."""
    try:
        torch.ones(1, requires_grad=True).sum().backward()
    except RuntimeError:
        sys.exit(1)


def _begin(work: Callable[..., object], *arguments: object) -> None:
    torch.set_num_threads(1)
    work(*arguments)
