"""How other processes of this machine begin."""

import multiprocessing
import sys
from multiprocessing.context import BaseContext

__all__ = ["fresh_processes"]

_SLOW_TO_IMPORT = ["torch", "torch._dynamo"]  # the second with the first step of an optimiser


def fresh_processes() -> BaseContext:
    """On Linux as forks of one process that has imported torch and nothing else, once for all that begin.

    They have nothing of this process, whose threads and devices no fork could share, and the environment that it had
    when the first of them began. Elsewhere torch may have threads of its own once it is imported, and every process
    imports it.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_SLOW_TO_IMPORT)
    return context
