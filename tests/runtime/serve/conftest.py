import threading

import pytest

from s2ap_defend.classifier import DefendedClassifier


class HeldClassifier(DefendedClassifier):
    """A defended classifier that can be held inside a batch."""

    gate = threading.Event()

    def __call__(self, images):
        assert self.gate.wait(10)
        return super().__call__(images)


@pytest.fixture
def held(tiny_model_path):
    classifier = HeldClassifier.load(tiny_model_path, device="cpu", threads=1, executor="whole")
    classifier.gate = threading.Event()
    yield classifier
    classifier.gate.set()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Signs certificates of this machine."""
    from tests.runtime.serve.certificates import Authority

    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def files(authority, tmp_path):
    """A certificate and its key."""
    return authority.issue(tmp_path)
