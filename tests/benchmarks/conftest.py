import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.export.small_recipe import small_parts

__all__ = ["small_parts"]  # a fixture, used by name

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[None]:
    """The folder of the benchmarks on the path."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))
