import numpy as np
import pytest

from s2ap_defend.classifier import DefendedClassifier


@pytest.fixture(scope="module")
def classifier(tiny_model_path) -> DefendedClassifier:
    return DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)


@pytest.fixture(scope="module")
def whole(tiny_model_path) -> DefendedClassifier:
    """The file in one session: what answers a batch can be replaced."""
    return DefendedClassifier.load(tiny_model_path, device="cpu", threads=1, executor="whole")


@pytest.fixture(scope="module")
def name(tiny_model_path) -> str:
    return tiny_model_path.stem


@pytest.fixture(scope="module")
def batch(classifier) -> np.ndarray:
    return np.random.default_rng(5).random((4, *classifier.input_shape), dtype=np.float32)
