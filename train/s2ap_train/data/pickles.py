"""CIFAR's files are pickles, and a pickle can run any code when it is read: these are looked through first."""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from s2ap_defend.errors import RecipeError

# What Python needs to rebuild numpy arrays, under the names that NumPy 1 and 2 write, and bytes from Python 2.
_HARMLESS = frozenset(
    {
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
    }
)


@contextmanager
def old_pickles_allowed() -> Iterator[None]:
    """Silence the warning of NumPy 2.4.0 to 2.4.4 at dtype('u1', 0, 1), which CIFAR's published pickles hold."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*align", category=np.exceptions.VisibleDeprecationWarning)
        yield


class _Unpickler(pickle.Unpickler):
    """Builds arrays, lists, numbers and text; everything else is refused before it can do anything."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  classes and functions, by the protocol
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return super().find_class(module, name)

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError(f"it refers to {pid!r}, which lies outside the file")


def read_pickle(path: Path) -> Any:  # noqa: ANN401  whatever the file holds
    """Read a pickle that holds nothing but arrays, lists, dictionaries, numbers and text.

    Raises:
        RecipeError: If it cannot be read, or would call anything else.
    """
    try:
        with path.open("rb") as file, old_pickles_allowed():
            return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(
            f"{path} is not a pickle of arrays, numbers and text ({reason}); get the published file"
        ) from error
