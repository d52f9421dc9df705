"""Page-locked memory: what lies there a GPU copies by itself, without a detour through memory of its driver."""

import ctypes
import weakref
from functools import cache
from typing import Any

from s2ap_defend.engines import Array

__all__ = ["pin"]

_DRIVER = "libcuda.so.1"
_PORTABLE = 1  # for every context of the process


def pin(array: Array) -> bool:
    """Lock the memory of an array until it is freed, by the driver of NVIDIA's GPUs (cuMemHostRegister).

    Copies are right without it as well, and slower.

    Args:
        array: It must own its memory.

    Returns:
        Whether it is locked; not where there is no driver, or this thread has not used a GPU yet.
    """
    driver, address = _driver(), array.ctypes.data
    if driver is None or driver.cuMemHostRegister_v2(address, array.nbytes, _PORTABLE) != 0:
        return False
    weakref.finalize(array, driver.cuMemHostUnregister, address)
    return True


@cache
def _driver() -> Any:  # noqa: ANN401 - a library that ctypes knows nothing of
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    driver.cuMemHostRegister_v2.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
    driver.cuMemHostUnregister.argtypes = [ctypes.c_void_p]
    return driver
