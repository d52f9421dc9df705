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
def sparse_model_path(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny file with nine of ten weights zero in convolutions, which lie in it as values and gaps."""
    from onnx import TensorProto, numpy_helper

    from s2ap_defend.model_file import all_tensors, open_model_file, write_model_file

    file = open_model_file(tiny_model_path)
    for tensor in all_tensors(file.proto.graph):
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 4 and tensor.name != "purifier/bank":
            weight = numpy_helper.to_array(tensor).copy()
            weight[np.abs(weight) <= np.quantile(np.abs(weight), 0.9)] = 0
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    path = tmp_path_factory.mktemp("sparse") / "sparse.onnx"
    write_model_file(file.proto, file.manifest.model_copy(update={"sparse_weights": 0}), path)
    return path


@pytest.fixture(scope="session")
def random_images() -> np.ndarray:
    """256 images [256, 1, 8, 8] of uniform noise."""
    return np.random.default_rng(0).random((256, 1, 8, 8), dtype=np.float32)
