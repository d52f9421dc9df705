import pytest


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Signs certificates of this machine."""
    from tests.runtime.serve.certificates import Authority

    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def files(authority, tmp_path):
    """A certificate and its key."""
    return authority.issue(tmp_path)
