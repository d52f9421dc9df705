"""Real defended model files and images for every test, without torch."""

import gc
import shutil
from pathlib import Path

import numpy as np
import pytest


def pytest_configure() -> None:
    """Collect no garbage while modules are imported and tests are found: hardly any of it is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Take what was made so far out of the rounds of the garbage collector, too."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """Let libraries that count what they leak find nothing."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the files that every later release must read."""
    return Path(__file__).parent / "contract" / "golden"


@pytest.fixture(scope="session")
def tiny_model_path(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defended file with tables under which images are decided after different numbers of members, some flagged and
    corrected, some not."""
    return Path(shutil.copy(golden / "version-4.onnx", tmp_path_factory.mktemp("tiny") / "tiny.onnx"))


@pytest.fixture(scope="session")
def abstaining_model_path(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a file where what is flagged is rejected and what is undecided abstains."""
    path = tmp_path_factory.mktemp("abstaining") / "abstaining.onnx"
    return Path(shutil.copy(golden / "version-4-abstaining.onnx", path))


@pytest.fixture(scope="session")
def random_images() -> np.ndarray:
    """256 images [256, 1, 8, 8] of uniform noise."""
    return np.random.default_rng(0).random((256, 1, 8, 8), dtype=np.float32)
